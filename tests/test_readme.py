"""What README and docs show must run."""

import re
from pathlib import Path

import torch
from tests.study.toy import REFERENCE, TOY, load_data
from torch import nn
from typer.testing import CliRunner

from latephase.cli import app
from latephase.study.analysis.results import load_results
from latephase.study.runs.evaluation import evaluate
from latephase.study.runs.store import Store
from latephase.study.strategies.catalogue import NAMES

README = Path(__file__).parents[1] / "README.md"
DOCS = README.parent / "docs"


def test_the_code_in_the_readme_trains():
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))

    def batches():
        while True:
            x = torch.randn(200, 5)
            yield x, x[:, :3].argmax(dim=1)

    names = {"model": model, "loss_func": nn.CrossEntropyLoss(), "batches": batches()}
    exec(code, names)

    x, y = next(batches())
    assert (model(x).argmax(dim=1) == y).float().mean() > 0.8
    assert isinstance(names["loss"], float)


def test_the_files_that_the_readme_links_exist():
    links = re.findall(r"\]\(((?!http)[^)#]+)\)", README.read_text())
    assert links
    assert not [link for link in links if not (README.parent / link).exists()]


def test_the_problem_in_the_docs_is_one_to_study(tmp_path):
    code, *_ = re.findall(r"```python\n(.*?)```", (DOCS / "study.md").read_text(), re.DOTALL)
    (tmp_path / "my_problem.py").write_text(code)
    arguments = ["study", f"{tmp_path / 'my_problem.py'}:build", "--out", str(tmp_path / "runs"), "--epochs", "2"]
    arguments += ["--seeds", "1", "--checkpoint", "last", "--strategies", "sgd_cosine", "--budget", "9gradients"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "runs" / "report.html").exists()


def test_the_strategy_in_the_docs_is_one_to_study(tmp_path):
    _, code, *_ = re.findall(r"```python\n(.*?)```", (DOCS / "study.md").read_text(), re.DOTALL)
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
