"""What README and docs show must run."""

import re
from pathlib import Path

import torch
from torch import nn
from typer.testing import CliRunner

from latephase.cli import app
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


def test_the_strategies_in_the_docs_are_all_there_are():
    text = (DOCS / "study.md").read_text()
    assert all(f"`{name}`" in text for name in NAMES)
