"""The optimizer under skorch, which passes a closure to it as to any other."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skorch import NeuralNetClassifier, NeuralNetRegressor
from skorch.callbacks import GradientNormClipping
from torch import nn

from latephase import HessianFree


def data() -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    x = generator.normal(size=(64, 4)).astype("float32")
    return x, np.sin(x[:, :1] * x[:, 1:2]).astype("float32")


class Net(nn.Module):
    """A small one."""

    def __init__(self, outputs: int = 1) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)


def settings(**options: object) -> dict[str, object]:
    return {
        "optimizer": HessianFree, "optimizer__damping": 0.1, "optimizer__solver": "auto", "max_epochs": 5,
        "batch_size": -1, "train_split": None, "verbose": 0, "lr": 1.0, **options,
    }  # fmt: skip


def test_a_regressor() -> None:
    x, y = data()
    net = NeuralNetRegressor(Net, **settings()).fit(x, y)
    losses = net.history[:, "train_loss"]
    assert losses[-1] < 0.5 * losses[0]
    assert isinstance(net.optimizer_, HessianFree)
    assert net.optimizer_.last_step is not None
    assert net.optimizer_.last_step.solver.startswith("direct") or "Broyden" in net.optimizer_.last_step.solver


def test_a_classifier() -> None:
    x, y = data()
    net = NeuralNetClassifier(Net, module__outputs=2, criterion=nn.CrossEntropyLoss, **settings(optimizer__solver="cg"))
    net.fit(x, (y[:, 0] > 0).astype("int64"))
    losses = net.history[:, "train_loss"]
    assert losses[-1] < losses[0]


def test_clipping_is_refused() -> None:
    net = NeuralNetRegressor(Net, **settings(callbacks=[GradientNormClipping(1.0)]))
    with pytest.raises(RuntimeError, match=r"reads the \.grad of a parameter"):
        net.fit(*data())
