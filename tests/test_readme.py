"""What README and docs show must run."""

import re

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import latephase
from latephase import finish
from latephase.cli import app
from latephase.study.analysis.results import load_results
from latephase.study.runs.evaluation import evaluate
from latephase.study.runs.store import Store
from latephase.study.strategies.catalogue import NAMES
from tests.pages import DOCS, README, python
from tests.study.toy import REFERENCE, TOY, load_data


def half_trained():
    """What the pages take for granted: a network, its loss, optimizer and data."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))
    x = torch.randn(600, 5)
    y = x[:, :3].argmax(dim=1)
    return {
        "latephase": latephase,
        "torch": torch,
        "model": model,
        "loss_func": nn.CrossEntropyLoss(),
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "train_data": (x[:400], y[:400]),
        "valid_data": (x[400:], y[400:]),
        "batches": [(x[i : i + 40], y[i : i + 40]) for i in range(0, 400, 40)] * 5,
    }


def accuracy(names):
    x, y = names["valid_data"]
    return (names["model"](x).argmax(dim=1) == y).float().mean()


@pytest.mark.parametrize("page", [README, DOCS / "finish.md"], ids=lambda page: page.stem)
def test_the_finish_on_the_page_finishes(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = half_trained()
    monkeypatch.setattr(latephase, "finish", lambda *a, **k: finish(*a, **{**k, "budget": "3000gradients"}))
    exec(python(page)[0], names)
    assert accuracy(names) > 0.9
    assert names["report"].best_by
    assert (tmp_path / "finish.html").exists()


def test_the_code_in_the_readme_trains():
    _, _, code = python(README)
    names = half_trained()
    names["batches"] = iter(100 * [*zip(*(part.split(200) for part in names["train_data"]), strict=True)])
    exec(code, names)
    assert accuracy(names) > 0.8
    assert isinstance(names["loss"], float)


def test_the_solver_in_the_readme_trains():
    _, code, _ = python(README)
    names = half_trained()
    names["x"], names["y"] = names["train_data"]
    exec(code.replace("range(40)", "range(4)"), names)
    assert accuracy(names) > 0.9
    assert names["loss"] < 0.3


def test_the_verdict_in_the_docs_is_one(capsys):
    exec(python(DOCS / "finish.md")[2], half_trained())
    assert "to second-order steps: " in capsys.readouterr().out


def test_the_detector_in_the_docs_sees_every_step():
    (code,) = python(DOCS / "stall.md")
    names = half_trained()
    exec(code, names)
    assert names["detector"].reason == "no verdict before 1,000 steps with finite losses, of which there have been few"


def test_the_switch_in_the_docs_switches(capsys):
    (code,) = python(DOCS / "switching.md")
    names = half_trained()
    names["batches"] *= 5
    before = accuracy(names)
    exec(code, names)
    assert capsys.readouterr().out.startswith("second 200 steps were taken; λ begins at ")
    assert accuracy(names) > before


def test_the_files_that_the_readme_links_exist():
    links = re.findall(r"\]\(((?!http)[^)#]+)\)", README.read_text())
    assert links
    assert not [link for link in links if not (README.parent / link).exists()]


def test_the_problem_in_the_docs_is_one_to_study(tmp_path):
    code, *_ = python(DOCS / "study.md")
    (tmp_path / "my_problem.py").write_text(code)
    arguments = ["study", f"{tmp_path / 'my_problem.py'}:build", "--out", str(tmp_path / "runs"), "--epochs", "2"]
    arguments += ["--seeds", "1", "--checkpoint", "last", "--strategies", "sgd_cosine", "--budget", "9gradients"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "runs" / "report.html").exists()


def test_the_strategy_in_the_docs_is_one_to_study(tmp_path):
    _, code, *_ = python(DOCS / "study.md")
    (tmp_path / "my_strategy.py").write_text(code)
    mine = f"{tmp_path / 'my_strategy.py'}:SwaThenHF"
    arguments = ["study", REFERENCE, "--out", str(tmp_path / "runs"), "--seeds", "1", "--checkpoint", "last"]
    arguments += ["--strategies", f"{mine},{mine}(at=0.1,every=2),hf_m12", "--budget", "300gradients"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    store = Store(tmp_path / "runs")
    results = load_results(store)
    steps = results.steps.groupby("id")["step"].max()
    ids = {strategy: run for run, strategy in results.runs["strategy"].items()}
    early, late = ids["swa_then_hf(at=0.1, every=2)"], ids["swa_then_hf"]
    assert steps[early] > steps[late] > 0
    for run in (early, late):  # the last step, which is taken back, leaves the network of the last point
        model = TOY.build_model()
        model.load_state_dict(store.network(run))
        assert evaluate(TOY, model, load_data()).train_loss == store.curve(run)["train_loss"].iloc[-1]


def test_the_strategies_in_the_docs_are_all_there_are():
    text = (DOCS / "study.md").read_text()
    assert all(f"`{name}`" in text for name in NAMES)
