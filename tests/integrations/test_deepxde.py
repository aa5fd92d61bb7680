"""The end of a DeepXDE training; in processes of their own, as DeepXDE changes PyTorch's defaults for all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

PROBLEM = """
import json, warnings
import deepxde as dde
import numpy as np
import torch
from latephase.integrations.deepxde import finish

dde.config.set_default_float("float64")
dde.config.set_random_seed(0)
torch.set_num_threads(1)

def build(factor=1.0, **options):
    geometry = dde.geometry.Interval(-1, 1)
    def residual(x, y):
        return -dde.grad.hessian(y, x) - factor * torch.sin(np.pi * x)
    def solution(x):
        return np.sin(np.pi * x)
    ends = dde.icbc.DirichletBC(geometry, solution, lambda _, on: on)
    data = dde.data.PDE(geometry, residual, [ends, *options.get("more", [])], 16, 2, solution=solution, num_test=100)
    return dde.Model(data, dde.nn.FNN([1, 10, 10, 1], "tanh", "Glorot uniform"))

def loss(model):
    state = model.train_state
    return float(model.outputs_losses_train(state.X_train, state.y_train, state.train_aux_vars)[1].sum().detach())
"""


def run(program: str, backend: str = "pytorch") -> Any:
    """What a program prints last, as JSON."""
    done = subprocess.run(
        [sys.executable, "-c", PROBLEM + program],
        env={**os.environ, "DDE_BACKEND": backend},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_it_ends_a_training() -> None:
    result = run(
        """
model = build(np.pi**2)
model.compile("adam", lr=1e-3, loss_weights=[1.0, 10.0])
model.train(iterations=300, verbose=0)
before, steps = loss(model), model.train_state.step
report = finish(model, budget="600gradients", progress=False)
x = np.linspace(-1, 1, 50)[:, None]
error = float(np.abs(model.predict(x) - np.sin(np.pi * x)).max())
print(json.dumps([before, loss(model), report.score_before, report.score, error, report.best_by,
                  float(model.losshistory.loss_train[-1].sum()), model.train_state.step > steps]))
"""
    )
    before, after, score_before, score, error, best_by, shown, counted = result
    assert score_before == before  # DeepXDE's own loss, with its weights
    assert score == after
    assert after < 1e-5 * before
    assert error < 1e-3
    assert best_by == "hessian-free"
    assert abs(shown - after) <= 1e-6 * after + 1e-15
    assert counted


def test_variables_beside_the_network_are_trained() -> None:
    factor = run(
        """
factor = dde.Variable(1.0)
x = np.linspace(-1, 1, 20)[:, None]
model = build(factor, more=[dde.icbc.PointSetBC(x, np.sin(np.pi * x))])
model.compile("adam", lr=1e-2, external_trainable_variables=[factor])
model.train(iterations=200, verbose=0)
finish(model, budget="400gradients", progress=False)
print(json.dumps(float(factor)))
"""
    )
    assert abs(factor - 9.8696) < 0.05


def test_what_it_cannot_end_is_refused() -> None:
    said = run(
        """
def refused(model):
    try:
        finish(model, budget="10gradients", progress=False)
    except (RuntimeError, ValueError) as error:
        return str(error)
fresh = build()
compiled = build()
compiled.compile("adam", lr=1e-3)
print(json.dumps([refused(fresh), refused(compiled)]))
"""
    )
    assert all("call model.compile(...) and model.train(...) first" in words for words in said)
