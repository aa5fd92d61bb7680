"""Direct steps, and a quasi-Newton method beside them: whichever lowers the loss faster for its price."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from latephase.checks import positive, positive_integer
from latephase.parts.broyden import Dense
from latephase.parts.direct import Direct
from latephase.parts.sampled import Sampled
from latephase.parts.solver import DampedProblem, Memory, Path
from latephase.parts.walk import Walk
from latephase.parts.wolfe import Place, place

FAST = 4.0  # factor by which a direct step lowers the loss, from which on nothing is faster
PROBE = 15  # gradients after which iterations that bring too little end
IN_A_ROW = 5.0  # bursts after which a direct step is tried, whatever the last one has brought; twice as many if in vain
LEARNING = 3.0  # bursts that what is learned afresh has before it is compared
GROWTH = 1.1  # by which what is expected of gradients grows with each direct step


class Pace(NamedTuple):
    """What direct steps and bursts have brought.

    Attributes:
        direct: By how much the last direct step has lowered the logarithm of the loss, per gradient of its price.
        burst: Likewise what is expected of gradients; infinite where that is not known.
        left: How many bursts there may be until a direct step is tried.
        patience: How many there are between two that are tried in vain.
        price: That of a direct step, in gradients.
    """

    direct: float
    burst: float
    left: float
    patience: float
    price: float

    @property
    def prefers_bursts(self) -> bool:
        """Whether gradients are expected to bring more."""
        return self.direct < self.burst

    @property
    def judged(self) -> bool:
        """Whether bursts are compared: the first ones learn."""
        return self.left <= self.patience - LEARNING

    def remembered(self, metric: Tensor, like: Tensor) -> Memory:
        """Return what is to be remembered of both, in the type of `like`."""
        return Memory(in_two(metric, like), like.new_tensor(self))


def in_two(x: Tensor, like: Tensor) -> Tensor:
    """Return float64 in the type of `like`; side by side what is left of it by rounding, where that is narrower."""
    rounded = x.type_as(like)
    return x if rounded.dtype == x.dtype else torch.cat((rounded, (x - rounded.type_as(x)).type_as(like)), 1)


def from_two(pair: Tensor) -> Tensor:
    """The inverse of `in_two`, as far as two numbers hold one in float64."""
    return pair if pair.dtype == torch.float64 else torch.stack(pair.double().chunk(2, 1)).sum(0)


@dataclass(frozen=True)
class Hybrid:
    """Solve directly where that is fast; where it is not, go on by gradients, and learn the curvature from them.

    Gauss-Newton and quasi-Newton steps (Fletcher & Xu 1987). The first see nothing of the residuals' own curvature:
    they crawl where that bends the loss most, far from the end, and are beyond all others near it. The second are those
    of the self-scaled Broyden family; their approximation of the inverse Hessian begins at the identity and is kept
    from step to step, P² numbers in float64, whatever the network's type: its eigenvalues differ by more than float32
    holds. A step is then a burst of their iterations, for as long as gradients lower the logarithm of the loss by more,
    each, than the last direct step did by its price; the first three bursts, which learn most, are not compared. After
    five another direct step is tried, after ten more the next, and so on. Once one lowers the loss fourfold the
    approximation is dropped.

    Where a step is judged on other data, only direct steps are taken: an approximation that learns from one batch after
    the other would learn their differences.

    Attributes:
        direct: What solves directly, for all rows or for a sample of them.
        largest: Most parameters that P² numbers are kept for.
        burst: Length of a burst, in prices of direct steps.

    >>> import torch
    >>> from latephase import HessianFree
    >>> x = torch.linspace(0.0, 1.0, 9)
    >>> theta = torch.nn.Parameter(torch.tensor([1.0, 1.0]))
    >>> def forward():
    ...     outputs = theta[0] * torch.exp(theta[1] * x)
    ...     return (outputs - 2.0 * torch.exp(-3.0 * x)).square().mean(), outputs
    >>> opt = HessianFree([theta], solver=Hybrid())
    >>> losses = [opt.step(forward) for _ in range(8)]
    >>> losses[-1] < 1e-8
    True
    """

    measures_damping: ClassVar[bool] = True
    direct: Direct | Sampled = field(default_factory=Direct)
    largest: int = 6000
    burst: float = 2.0

    def __post_init__(self) -> None:
        positive_integer("largest", self.largest)
        positive("burst", self.burst)

    def accepts(self, rows: int, samples: int, size: int) -> bool:
        """Whether a matrix of this size, of so many rows of so many samples, is not too large."""
        return self.direct.accepts(rows, samples, size)

    def __call__(self, problem: DampedProblem) -> Path:
        """See `Solver`."""
        if problem.loss_model != problem.loss_0 or problem.b.numel() > self.largest:
            return self.direct(problem)
        found = _recalled(problem)
        if found is None:
            return self._direct_step(problem)
        metric, pace = found
        if pace.left <= 0.0 or (pace.judged and not pace.prefers_bursts):
            return self._direct_step(problem)
        return self._burst(problem, metric, pace)

    def _direct_step(self, problem: DampedProblem) -> Path:
        path, price = self.direct.explore(problem)
        after = path.losses[path.last] if path.steps else problem.loss_0
        if not math.isfinite(price) or not after > 0.0 or problem.loss_0 > FAST * after:
            return path
        rate, found = math.log(problem.loss_0 / after) / price, _recalled(problem)
        if found is None:
            learned = torch.ones_like(problem.b).double().diag()  # nothing yet
            pace = Pace(rate, math.inf, IN_A_ROW, IN_A_ROW, price)
            return replace(path, memory=pace.remembered(learned, problem.b))
        metric, pace = found
        kept = pace._replace(direct=rate, burst=GROWTH * pace.burst, price=price)
        patience = 2.0 * pace.patience if kept.prefers_bursts else IN_A_ROW
        left = patience if kept.prefers_bursts else IN_A_ROW - LEARNING
        return replace(path, memory=kept._replace(left=left, patience=patience).remembered(metric, problem.b))

    def _burst(self, problem: DampedProblem, metric: Tensor, pace: Pace) -> Path:
        """Iterations from θ; where they bring nothing, a direct step instead."""
        inverse, minus_g = Dense(metric), problem.b.double()
        walk = Walk(Place(torch.zeros_like(minus_g), problem.loss_0, -minus_g), inverse)

        def at(p: Tensor) -> Place:
            found = place(problem, p.type_as(problem.b))
            return Place(p, found.loss, found.g.double())

        while walk.gradients < self.burst * pace.price:
            if pace.judged and walk.gradients >= PROBE and walk.rate < 0.5 * pace.direct:
                break
            if not walk.advance(at):
                break
        path = walk.path(problem)
        if path.losses[path.last] < problem.loss_0:
            after = pace._replace(burst=walk.rate, left=pace.left - 1.0)
            return replace(path, memory=after.remembered(inverse.dense(), problem.b))
        return self._direct_step(replace(problem, memory=None))


def _recalled(problem: DampedProblem) -> tuple[Tensor, Pace] | None:
    """What an earlier step has left; None if it is nothing, or of another solver, or of other parameters."""
    P, memory = problem.b.numel(), problem.memory
    width = P if problem.b.dtype == torch.float64 else 2 * P
    if memory is None or memory.metric.shape != (P, width) or len(memory.numbers) != len(Pace._fields):
        return None
    return from_two(memory.metric), Pace(*memory.numbers.tolist())
