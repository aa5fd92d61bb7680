"""A physics-informed network for Poisson's equation: −Δu = 2π² sin(πx) sin(πy) on the unit square, u = 0 on its edge.

The solution is u = sin(πx) sin(πy). No images here: the loss is a sum of squared residuals, and what limits the result
is the optimizer.
"""

import math
from pathlib import Path

import torch
from torch import Tensor, nn

from latephase.study.data import Data, Split
from latephase.study.problems.initialise import initialise
from latephase.study.problems.pinn import (
    FRESH,
    RELATIVE_ERROR,
    half_mean_square,
    in_box,
    of_kind,
    on_square,
    seeded,
)
from latephase.study.problems.problem import Problem
from latephase.study.problems.tanh_network import propagate

INTERIOR, BOUNDARY = 1000, 800
"""Training points inside and on the edge."""


class Residual(nn.Module):
    """How far a tanh network with two hidden layers is from solving the equation.

    Inputs are rows (x, y, 1 on the edge and 0 inside), outputs rows (weighted residual, u). The residual is Δu +
    2π² sin(πx) sin(πy) inside, u on the edge. Its weight is such that the mean of squares over all training points is
    the mean over those inside plus the mean over those on the edge.

    Value and Laplacian come from one forward pass, see `propagate`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(2, 32)
        self.second = nn.Linear(32, 32)
        self.last = nn.Linear(32, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map [N, 3] to [N, 2]."""
        points, on_edge = inputs[:, :2], inputs[:, 2] > 0.5
        u, laplacian = self.solution(points)
        inside = math.sqrt((INTERIOR + BOUNDARY) / INTERIOR) * (laplacian + 2 * math.pi**2 * exact(points))
        edge = math.sqrt((INTERIOR + BOUNDARY) / BOUNDARY) * u
        return torch.stack([torch.where(on_edge, edge, inside), u], dim=1)

    def solution(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Return u and its Laplacian at `points`, [N, 2]."""
        u, _, laplacian = propagate((self.first, self.second, self.last), points, (1.0, 1.0))
        return u, laplacian


def exact(points: Tensor) -> Tensor:
    """Return the solution at `points`, [N, 2]."""
    return torch.sin(math.pi * points[:, 0]) * torch.sin(math.pi * points[:, 1])


def build_model() -> nn.Module:
    """Return the network, 1,185 parameters in float64: Xavier-uniform weights, zero biases."""
    return initialise(Residual()).double()


def load_data(folder: Path | None = None) -> Data:
    """Return points drawn uniformly, always the same, with the solution as targets; `folder` is not needed."""
    generator = seeded()
    kinds = in_square(INTERIOR, generator), on_square(BOUNDARY, generator)
    train, test = torch.cat([of_kind(points, kind) for kind, points in enumerate(kinds)]), in_square(FRESH, generator)
    return Data(Split(train, exact(train)), Split(of_kind(test, 0), exact(test)))


def in_square(n: int, generator: torch.Generator) -> Tensor:
    """Return points drawn uniformly from the unit square, [n, 2] in float64."""
    return in_box(n, (0.0, 0.0), (1.0, 1.0), generator)


POISSON_PINN = Problem(
    name="poisson_pinn",
    build_model=build_model,
    load_data=load_data,
    lr=4e-3,  # with 8e-3 the loss goes up and down from the start, with 2e-3 it takes twice as long
    batch_size=INTERIOR + BOUNDARY,  # all of them
    epochs=10_000,
    weight_decay=0.0,
    curvature_batch=1000,
    gradient_batch=INTERIOR + BOUNDARY,
    evaluation_batch=800,
    source="problem and settings: chosen here",
    cpu_threads=1,  # the tensors are too small to gain from more
    loss=half_mean_square,
    metric=RELATIVE_ERROR,
)
