"""The examples run as they stand, but for the budget: counted work, so that they end at the same place everywhere."""

import runpy
from pathlib import Path
from typing import Any

import pytest
import torch

import latephase
from latephase import finish
from latephase.study.own import find_function

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def counted(monkeypatch):
    """Reports of the finishes that an example makes."""
    reports = []

    def counting(*arguments, **options):
        options |= {"budget": "400gradients", "progress": False}
        reports.append(finish(*arguments, **options))
        return reports[-1]

    monkeypatch.setattr(latephase, "finish", counting)
    yield reports
    torch.set_default_dtype(torch.float32)


def run(name):
    return runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def test_a_training_script_with_a_finish_at_its_end(counted, capsys):
    names = run("finish_classifier.py")
    (report,) = counted
    assert report.judged_by.startswith("held-out loss")
    assert report.score < report.score_before
    assert "finish: held-out loss" in capsys.readouterr().out
    x, y = names["valid"]
    assert (names["model"](x).argmax(dim=1) == y).float().mean() > 0.85


def test_a_physics_informed_network(counted, capsys):
    run("finish_pinn.py")
    (report,) = counted
    assert report.best_by == "hessian-free"
    assert report.score < 1e-5
    error = float(capsys.readouterr().out.rpartition(": ")[2])
    assert error < 1e-2


def test_the_module_for_the_command_line_has_what_a_finish_takes():
    built: Any = find_function(f"{EXAMPLES / 'my_module.py'}:build")()
    report = finish(**built, budget="1000gradients", progress=False)
    assert report.score < report.score_before


def test_there_are_no_others():
    assert {path.name for path in EXAMPLES.glob("*.py")} == {"finish_classifier.py", "finish_pinn.py", "my_module.py"}
