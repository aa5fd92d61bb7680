"""Regression on a table: Friedman's first function of five of ten columns, with noise.

y = 10 sin(π x₁ x₂) + 20 (x₃ − ½)² + 10 x₄ + 5 x₅ + ε, columns uniform from 0 to 1, ε standard normal. The best that can
be reached on fresh rows is therefore a root mean squared error of 1. It stands here for a real table, because those
that scikit-learn bundles have a few hundred rows.
"""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from latephase.study.data import Data, Split
from latephase.study.problems.initialise import initialise
from latephase.study.problems.problem import Metric, Problem

TRAIN, TEST = 8000, 2000


def build_model() -> nn.Module:
    """Return the network: inputs [N, 10], outputs [N, 1]; 4,929 parameters in float64."""
    layers = nn.Linear(10, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1)
    return initialise(nn.Sequential(*layers)).double()


def load_data(folder: Path | None = None) -> Data:
    """Return rows and columns as scikit-learn draws them, always the same; `folder` is not needed."""
    from sklearn.datasets import make_friedman1  # here, because it takes a second, which other problems need not wait

    columns, y = make_friedman1(TRAIN + TEST, n_features=10, noise=1.0, random_state=0)
    rows = Split(2 * torch.tensor(columns) - 1, torch.tensor(y)[:, None])  # centred
    return Data(rows.take(slice(TRAIN)), rows.take(slice(TRAIN, None)))


def half_mean_square(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return half the mean squared error."""
    return 0.5 * mse_loss(outputs, targets)


def root_mean_square(outputs: Tensor, targets: Tensor) -> float:
    """Return the root of the mean squared error."""
    return mse_loss(outputs, targets).sqrt().item()


FRIEDMAN1 = Problem(
    name="friedman1",
    build_model=build_model,
    load_data=load_data,
    lr=0.01,
    batch_size=100,
    epochs=50,
    weight_decay=1e-4,
    curvature_batch=1000,
    gradient_batch=TRAIN,
    evaluation_batch=2000,
    source="data: Friedman 1991, scikit-learn's make_friedman1; network and settings: chosen here",
    cpu_threads=1,  # the tensors are too small to gain from more
    loss=half_mean_square,
    metric=Metric("root mean squared error", root_mean_square, higher_is_better=False),
)
