"""The benchmark of long runs on a tiny scale: what counts as standing still, and what the table says."""

import json
import sys

from benchmarks import long_runs

from latephase.records import Outcome, StepRecord


def record(damping, next_damping, ratio):
    return StepRecord(Outcome.ACCEPTED, None, 2.0, 1.0, damping, next_damping, ratio)


def test_a_bound_is_where_the_rule_wants_more_and_nothing_happens():
    assert long_runs.at_a_bound(record(3.0, 3.0, 0.1))
    assert long_runs.at_a_bound(record(3.0, 3.0, None))
    assert not long_runs.at_a_bound(record(3.0, 3.0, 0.5))
    assert not long_runs.at_a_bound(record(3.0, 4.5, 0.1))


def test_a_run_that_the_store_has_is_not_made_again(monkeypatch, capsys, tmp_path):
    arguments = ["--problem", "digits_cnn", "--sizes", "64", "--steps", "2", "--seeds", "1", "--epochs", "1"]
    monkeypatch.setattr(sys, "argv", ["long_runs", *arguments, "--out", str(tmp_path)])
    long_runs.main()
    (row,) = json.loads((tmp_path / "results.json").read_text()).values()
    assert len(row["losses"]) == 2
    table = capsys.readouterr().out
    assert "| m = 64 | " in table
    monkeypatch.setattr(long_runs, "run", None)
    long_runs.main()
    assert capsys.readouterr().out == table
