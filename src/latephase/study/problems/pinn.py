"""Physics-informed networks: an equation and its conditions as residuals at points of several kinds."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from latephase.study.data import Data, Split
from latephase.study.problems.initialise import initialise
from latephase.study.problems.problem import Metric, Problem
from latephase.study.problems.tanh_network import Jet, TanhNetwork

FRESH = 5000
"""Test points, in the interior."""

Function = Callable[[Tensor], Tensor]
"""Maps points [N, d] to values [N]."""


@dataclass(frozen=True)
class Equation:
    """A differential equation with its conditions, and its solution.

    Attributes:
        coefficients: Of its second-order operator Σᵢ cᵢ ∂²/∂xᵢ².
        residuals: Maps points [N, d], the network's jet there and the network to what should be 0, a tensor [N] for
            each kind of point: first the equation, then the conditions.
        solution: The exact u.
    """

    coefficients: tuple[float, ...]
    residuals: Callable[[Tensor, Jet, Function], Sequence[Tensor]]
    solution: Function


class Residual(nn.Module):
    """How far a tanh network is from solving an equation.

    Inputs are rows (point, kind), outputs rows (weighted residual, u). Each kind has a weight, such that the mean of
    squares over all training points is the sum of the means over the points of each kind.

    Args:
        equation: What to solve.
        hidden: Widths of the hidden layers.
        counts: How many training points there are of each kind.
    """

    def __init__(self, equation: Equation, hidden: Sequence[int], counts: Sequence[int]) -> None:
        super().__init__()
        self.equation = equation
        self.weights = [math.sqrt(sum(counts) / count) for count in counts]
        self.network = TanhNetwork(len(equation.coefficients), *hidden)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map [N, d + 1] to [N, 2]."""
        points, kind = inputs[:, :-1], inputs[:, -1]
        jet = self.network.jet(points, self.equation.coefficients)
        residual = torch.zeros_like(kind)
        of_kinds = self.equation.residuals(points, jet, self.network)
        for number, (weight, of_kind) in enumerate(zip(self.weights, of_kinds, strict=True)):
            residual = torch.where(kind == number, weight * of_kind, residual)
        return torch.stack([residual, jet.value], dim=1)


def residual_network(equation: Equation, hidden: Sequence[int], counts: Sequence[int]) -> nn.Module:
    """Return a `Residual` in float64, with weights from Glorot and Bengio's normal distribution and zero biases."""
    return initialise(Residual(equation, hidden, counts).double(), dense=nn.init.xavier_normal_)


def collocation(equation: Equation, kinds: Sequence[Tensor], fresh: Tensor) -> Data:
    """Return points as data, the solution there as targets.

    Args:
        equation: Has the solution, which the loss does not look at.
        kinds: Training points [N, d] of each kind, in the order of the equation's residuals.
        fresh: Test points.
    """
    train = torch.cat([of_kind(points, number) for number, points in enumerate(kinds)])
    test = of_kind(fresh, 0)
    return Data(Split(train, equation.solution(train[:, :-1])), Split(test, equation.solution(test[:, :-1])))


def of_kind(points: Tensor, kind: int) -> Tensor:
    """Return rows (point, kind)."""
    return torch.cat([points, torch.full_like(points[:, :1], kind)], dim=1)


def seeded() -> torch.Generator:
    """Return a generator that always draws the same points."""
    return torch.Generator().manual_seed(0)


def in_box(n: int, low: Sequence[float], high: Sequence[float], generator: torch.Generator) -> Tensor:
    """Return points drawn uniformly between two corners, [n, d] in float64."""
    corners = torch.tensor([low, high], dtype=torch.float64)
    unit = torch.rand(n, len(low), generator=generator, dtype=torch.float64)
    return corners[0] + (corners[1] - corners[0]) * unit


def on_square(n: int, generator: torch.Generator) -> Tensor:
    """Return points drawn uniformly on the four sides of the unit square, as many on each, [n, 2] in float64."""
    along = torch.rand(n, generator=generator, dtype=torch.float64)
    side = torch.arange(n) % 4
    across = (side // 2).double()  # 0 or 1
    x, y = torch.where(side % 2 == 0, along, across), torch.where(side % 2 == 0, across, along)
    return torch.stack([x, y], dim=1)


def half_mean_square(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return half the mean of the squared residuals; the solution, in `targets`, is not known to the training."""
    return 0.5 * outputs[:, 0].square().mean()


def relative_error(outputs: Tensor, targets: Tensor) -> float:
    """Return ‖u - targets‖ / ‖targets‖."""
    return ((outputs[:, 1] - targets).norm() / targets.norm()).item()


RELATIVE_ERROR = Metric("relative L2 error", relative_error, higher_is_better=False)


Draw = Callable[[], tuple[Sequence[Tensor], Tensor]]
"""Returns training points of each kind, and test points."""


def pinn(
    name: str,
    equation: Equation,
    hidden: Sequence[int],
    counts: Sequence[int],
    draw: Draw,
    *,
    source: str,
    lr: float,
    epochs: int,
    cpu_threads: int | None = None,
) -> Problem:
    """Return an equation as a problem: all points in a batch, and Adam at 0.001 for the first phase.

    Args:
        name: What the command line calls it.
        equation: What to solve.
        hidden: Widths of the hidden layers.
        counts: How many training points there are of each kind.
        draw: Draws that many, always the same.
        source: See `Problem`, like all that follow.
        lr: SGD's, for the strategies.
        epochs: Steps of Adam.
        cpu_threads: How many.
    """
    points = sum(counts)
    return Problem(
        name=name,
        build_model=lambda: residual_network(equation, hidden, counts),
        load_data=lambda folder: collocation(equation, *draw()),
        lr=lr,
        batch_size=points,
        epochs=epochs,
        weight_decay=0.0,
        curvature_batch=points // 2,
        gradient_batch=points,
        evaluation_batch=points // 4,
        source=source,
        cpu_threads=cpu_threads,
        first_phase="adam(lr=0.001)",
        loss=half_mean_square,
        metric=RELATIVE_ERROR,
    )
