"""The benchmark of verdicts on a tiny scale."""

import sys

import pytest
from benchmarks import verdicts


def test_a_verdict_stands_beside_what_came_of_it(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(verdicts, "TRAININGS", {"friedman1": ((1,), 1)})
    monkeypatch.setattr(sys, "argv", ["verdicts", "--out", str(tmp_path)])
    verdicts.main()
    table = capsys.readouterr().out
    assert "| friedman1, 1 epochs | 1 | " in table
    monkeypatch.setattr(verdicts, "verdict", None)
    monkeypatch.setattr(verdicts, "finish", None)
    verdicts.main()  # from the store
    assert capsys.readouterr().out == table


@pytest.mark.parametrize(("amenable", "hf", "right"), [(True, 1.0, True), (True, 3.0, False), (False, 3.0, True)])
def test_right_is_what_was_better(amenable, hf, right):
    results = {
        "toy/5/verdict": {"amenable": amenable, "signal": None, "test_loss": 4.0},
        "toy/5/decay/0": {"test_loss": 2.0},
        "toy/5/hessian-free/0": {"test_loss": hf},
    }
    cells, found = verdicts.row(results, "toy/5", 10, "test_loss")
    assert found is right
    assert cells[2:4] == ["∞", "yes" if amenable else "no"]
