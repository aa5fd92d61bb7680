"""`latephase finish`: a module and a checkpoint in, a network and a report out; what is wrong is said of arguments."""

import re
import subprocess
import sys
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from latephase.cli import app

MODULE = """
import torch
from torch import nn

def build():
    torch.manual_seed(0)
    x = torch.linspace(-1.0, 1.0, 100).unsqueeze(1)
    model = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    return {"model": model, "loss_func": nn.MSELoss(), "train_data": (x, x**2), "optimizer": optimizer}

def three():
    return 3

def lacking():
    return {"model": build()["model"]}

def unknown():
    return {**build(), "learning_rate": 3}

def broken():
    import nonexistent_module

network = 3
"""


@pytest.fixture
def module(tmp_path):
    (tmp_path / "module.py").write_text(MODULE)
    return tmp_path / "module.py"


def invoke(*arguments):
    return CliRunner().invoke(app, ["finish", *map(str, arguments)])


def words(text):
    """The text of an error message without the frame around it."""
    return " ".join(re.sub("[│╭╮╰╯─]", " ", text).split())


def names_of(module):
    names: dict[str, Any] = {}
    exec(module.read_text(), names)
    return names


def loss_of(module, state):
    built = names_of(module)["build"]()
    built["model"].load_state_dict(state)
    x, y = built["train_data"]
    return built["loss_func"](built["model"](x), y).item()


def test_a_network_and_a_report_come_out(module, tmp_path):
    to = tmp_path / "deep" / "finished.pt"
    result = invoke(f"{module}:build", "--budget", "2000gradients", "--to", to)
    assert result.exit_code == 0, result.output
    assert "finish: objective" in result.output
    assert f"network: {to}" in result.output
    assert f"report: {to.with_suffix('.html')}" in result.output
    assert "<svg" in to.with_suffix(".html").read_text()
    before = names_of(module)["build"]()["model"].state_dict()
    assert loss_of(module, torch.load(to)) < 0.01 * loss_of(module, before)


def test_it_goes_on_from_a_checkpoint(module, tmp_path):
    built = names_of(module)["build"]()
    with torch.no_grad():
        built["model"][2].bias.add_(7.0)
    checkpoint = {"model": built["model"].state_dict(), "optimizer": built["optimizer"].state_dict()}
    torch.save(checkpoint, tmp_path / "model.pt")
    to = tmp_path / "finished.pt"
    options = ["--checkpoint", tmp_path / "model.pt", "--budget", "0.1gradients", "--to", to]
    result = invoke(f"{module}:build", *options)
    assert result.exit_code == 0, result.output
    assert f"objective {loss_of(module, checkpoint['model']):.6g} ->" in result.output


def test_a_folder_keeps_where_it_stands(module, tmp_path):
    options = ["--budget", "500gradients", "--out", tmp_path / "state"]
    for name in ("a.pt", "b.pt"):
        assert invoke(f"{module}:build", *options, "--to", tmp_path / name).exit_code == 0
    one, other = (torch.load(tmp_path / name) for name in ("a.pt", "b.pt"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    result = invoke(
        f"{module}:build", "--budget", "501gradients", "--out", tmp_path / "state", "--to", tmp_path / "c.pt"
    )
    assert result.exit_code == 2
    assert "of another finish, with other budget" in words(result.output)


def test_processes_of_torchrun_finish_together(module, tmp_path):
    to = tmp_path / "finished.pt"
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "latephase",
    ]
    options = ["finish", f"{module}:build", "--budget", "300gradients", "--to", to, "--quiet"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("finish: objective") == 1
    before = names_of(module)["build"]()["model"].state_dict()
    assert loss_of(module, torch.load(to)) < 0.1 * loss_of(module, before)


@pytest.mark.parametrize(
    ("build", "options", "message"),
    [
        ("module.py", [], "names no function; expected path/to/my_module.py:build"),
        ("module.py:nothing", [], "nothing"),
        ("module.py:network", [], "network"),
        ("missing.py:build", [], "missing.py"),
        ("module.py:three", [], "must return a dictionary with model and loss_func, not int"),
        ("module.py:lacking", [], "must return a dictionary with model and loss_func"),
        ("module.py:unknown", [], "returned 'learning_rate'; there are: model, loss_func"),
        ("module.py:broken", [], "nonexistent_module"),
        ("module.py:build", ["--checkpoint", "missing.pt"], "there is no checkpoint missing.pt"),
        ("module.py:build", ["--checkpoint", "module.py"], "no file of tensors and numbers"),
        ("module.py:build", ["--budget", "soon"], "10min"),
        ("module.py:build", ["--to", "module.py/finished.pt"], "module.py"),
    ],
)
def test_what_cannot_be_used_is_said_before_anything_is_trained(module, build, options, message, monkeypatch):
    monkeypatch.chdir(module.parent)
    budget = [] if "--budget" in options else ["--budget", "10gradients"]
    result = invoke(build, *budget, *options)
    assert result.exit_code == 2, result.output
    assert message in words(result.output)
    assert {path.name for path in module.parent.iterdir()} <= {"module.py", "__pycache__"}
