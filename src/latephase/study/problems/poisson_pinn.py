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
from latephase.study.problems.problem import Metric, Problem

INTERIOR, BOUNDARY, FRESH = 1000, 800, 5000
"""Training points inside and on the edge, and test points inside."""


class Residual(nn.Module):
    """How far a tanh network with two hidden layers is from solving the equation.

    Inputs are rows (x, y, 1 on the edge and 0 inside), outputs rows (weighted residual, u). The residual is Δu +
    2π² sin(πx) sin(πy) inside, u on the edge. Its weight is such that the mean of squares over all training points is
    the mean over those inside plus the mean over those on the edge.

    Value, gradient and Laplacian are propagated through the layers together, in one forward pass. That takes no
    automatic differentiation inside the forward pass, so whatever differentiates the network works here, too.
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
        value = points
        slopes = torch.eye(2).to(points)[:, None].expand(2, len(points), 2)  # ∂/∂x and ∂/∂y of every entry
        laplacian = torch.zeros_like(points)
        for layer in (self.first, self.second):
            value = torch.tanh(layer(value))
            slopes, laplacian = slopes @ layer.weight.T, laplacian @ layer.weight.T
            derivative = 1 - value.square()  # of tanh; its second one is -2 · tanh · derivative
            laplacian = derivative * (laplacian - 2 * value * slopes.square().sum(dim=0))
            slopes = derivative * slopes
        return self.last(value)[:, 0], (laplacian @ self.last.weight.T)[:, 0]


def exact(points: Tensor) -> Tensor:
    """Return the solution at `points`, [N, 2]."""
    return torch.sin(math.pi * points[:, 0]) * torch.sin(math.pi * points[:, 1])


def build_model() -> nn.Module:
    """Return the network, 1,185 parameters in float64: Xavier-uniform weights, zero biases."""
    return initialise(Residual()).double()


def load_data(folder: Path | None = None) -> Data:
    """Return points drawn uniformly, always the same, with the solution as targets; `folder` is not needed."""
    generator = torch.Generator().manual_seed(0)

    def inside(n: int) -> Tensor:
        points = torch.rand(n, 2, generator=generator, dtype=torch.float64)
        return torch.cat([points, torch.zeros(n, 1, dtype=torch.float64)], dim=1)

    def edge(n: int) -> Tensor:
        along = torch.rand(n, generator=generator, dtype=torch.float64)
        side = torch.arange(n) % 4
        across = (side // 2).double()  # 0 or 1
        x, y = torch.where(side % 2 == 0, along, across), torch.where(side % 2 == 0, across, along)
        return torch.stack([x, y, torch.ones_like(x)], dim=1)

    train, test = torch.cat([inside(INTERIOR), edge(BOUNDARY)]), inside(FRESH)
    return Data(Split(train, exact(train)), Split(test, exact(test)))


def half_mean_square(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return half the mean of the squared residuals; the solution, in `targets`, is not known to the training."""
    return 0.5 * outputs[:, 0].square().mean()


def relative_error(outputs: Tensor, targets: Tensor) -> float:
    """Return ‖u - targets‖ / ‖targets‖."""
    return ((outputs[:, 1] - targets).norm() / targets.norm()).item()


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
    metric=Metric("relative L2 error", relative_error, higher_is_better=False),
)
