"""What is said where a framework, or the study's packages, are not installed."""

from __future__ import annotations

import subprocess
import sys

import pytest

WITHOUT = "import sys\nfor name in {missing!r}: sys.modules[name] = None\n"
STUDY = {"typer", "rich", "matplotlib", "pandas", "jinja2", "datasets", "sklearn", "pyarrow", "scipy", "PIL", "fsspec"}


def run_without(missing: set[str], program: str) -> subprocess.CompletedProcess[str]:
    code = WITHOUT.format(missing=missing) + program
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("extra", "package"), [("lightning", "lightning"), ("transformers", "transformers"), ("deepxde", "deepxde")]
)
def test_an_integration_names_its_extra(extra: str, package: str) -> None:
    done = run_without({package}, f"import latephase.integrations.{extra}")
    assert done.returncode != 0
    assert f"latephase.integrations.{extra} needs" in done.stderr
    assert f"pip install 'latephase[{extra}]'" in done.stderr


def test_the_study_names_its_extra() -> None:
    done = run_without(STUDY, "import latephase.study")
    assert done.returncode != 0
    assert "pip install 'latephase[study]'" in done.stderr


def test_torch_alone_is_enough_to_step_and_finish() -> None:
    others = {"lightning", "transformers", "deepxde", "accelerate", "peft", "skorch", "numpy", "ray", "tensorboard"}
    program = """
import torch
from latephase import HessianFree, finish
model = torch.nn.Linear(3, 1)
x, y = torch.randn(20, 3), torch.randn(20, 1)
for solver in "cg", "krylov", "direct", "sampled", "quasi-newton", "auto":
    HessianFree(model.parameters(), solver=solver).acc_step(model, torch.nn.functional.mse_loss, [(x, y)])
print(finish(model, torch.nn.functional.mse_loss, (x, y), budget="50gradients").score)
"""
    done = run_without(STUDY | others, program)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.splitlines()[-1]) >= 0.0
