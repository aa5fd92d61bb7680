"""Direct steps, and a quasi-Newton method beside them: whichever lowers the loss faster for its price."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from latephase.checks import positive, positive_integer
from latephase.parts.broyden import Inverse, change
from latephase.parts.direct import Direct
from latephase.parts.sampled import Sampled
from latephase.parts.solver import DampedProblem, Memory, Path
from latephase.parts.wolfe import Place, first_step, place, weak_wolfe

FAST = 4.0  # factor by which a direct step lowers the loss, from which on nothing is faster
PROBE = 15  # gradients after which iterations that bring too little end
IN_A_ROW = 5.0  # bursts after which a direct step is tried, whatever the last one has brought; twice as many if in vain
LEARNING = 3.0  # bursts that what is learned afresh has before it is compared
GROWTH = 1.1  # by which what is expected of gradients grows with each direct step


@dataclass(frozen=True)
class Hybrid:
    """Solve directly where that is fast; where it is not, go on by gradients, and learn the curvature from them.

    Gauss-Newton and quasi-Newton steps (Fletcher & Xu 1987). The first see nothing of the residuals' own curvature:
    they crawl where that bends the loss most, far from the end, and are beyond all others near it. The second are those
    of the self-scaled Broyden family; their approximation of the inverse Hessian begins at the identity and is kept
    from step to step, P² numbers. A step is then a burst of their iterations, for as long as gradients lower the
    logarithm of the loss by more, each, than the last direct step did by its price; the first three bursts, which learn
    most, are not compared. After five another direct step is tried, after ten more the next, and so on. Once one lowers
    the loss fourfold the approximation is dropped.

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
        memory = problem.memory
        if problem.loss_model != problem.loss_0 or problem.b.numel() > self.largest:
            return self.direct(problem)
        if memory is None or memory.left <= 0.0 or (_judged(memory) and not _prefers_bursts(memory)):
            return self._direct_step(problem)
        return self._burst(problem, memory)

    def _direct_step(self, problem: DampedProblem) -> Path:
        path, price = self.direct.explore(problem)
        after = path.losses[path.last] if path.steps else problem.loss_0
        if not math.isfinite(price) or not after > 0.0 or problem.loss_0 > FAST * after:
            return path
        rate, memory = math.log(problem.loss_0 / after) / price, problem.memory
        if memory is None:
            metric = torch.ones_like(problem.b).diag()
            return replace(path, memory=Memory(metric, rate, math.inf, IN_A_ROW, IN_A_ROW, price))
        kept = memory._replace(direct=rate, burst=GROWTH * memory.burst, price=price)
        if _prefers_bursts(kept):
            return replace(path, memory=kept._replace(left=2.0 * memory.patience, patience=2.0 * memory.patience))
        return replace(path, memory=kept._replace(left=IN_A_ROW - LEARNING, patience=IN_A_ROW))

    def _burst(self, problem: DampedProblem, memory: Memory) -> Path:
        """Iterations from θ; where they bring nothing, a direct step instead."""
        walk = Walk(Place(torch.zeros_like(problem.b), problem.loss_0, -problem.b), memory.metric)
        while walk.gradients < self.burst * memory.price:
            if _judged(memory) and walk.gradients >= PROBE and walk.rate < 0.5 * memory.direct:
                break
            if not walk.advance(lambda p: place(problem, p)):
                break
        p = walk.here.p
        loss = problem.loss_at(p)
        if not loss < problem.loss_0:
            return self._direct_step(replace(problem, memory=None))
        fall = loss - problem.loss_0
        return Path(
            {walk.gradients: p},
            fall,
            walk.gradients,
            damping_factor=1.0,
            slope=fall,
            losses={walk.gradients: loss},
            method=f"{walk.gradients} gradients of self-scaled Broyden",
            memory=memory._replace(metric=walk.inverse.dense(), burst=walk.rate, left=memory.left - 1.0),
        )


class Walk:
    """Self-scaled Broyden from a place, with an approximation H of the inverse Hessian, of which it keeps a copy."""

    def __init__(self, start: Place, H: Tensor) -> None:
        self.here, self.inverse, self.gradients = start, Inverse(H), 0
        self._Hg = self.inverse.times(start.g)
        self._loss_0 = start.loss
        self._before: float | None = None

    @property
    def rate(self) -> float:
        """By how much a gradient has lowered the logarithm of the loss."""
        return math.log(self._loss_0 / self.here.loss) / max(self.gradients, 1) if self.here.loss > 0.0 else math.inf

    def advance(self, at: Callable[[Tensor], Place]) -> bool:
        """Move once; False where no step along the direction lowers the loss."""
        here, d = self.here, -self._Hg
        found = weak_wolfe(here, d, at, first_step(here, d, self._before))
        self.gradients += found.gradients
        if found.place is None:
            return False
        s, y = found.place.p - here.p, found.place.g - here.g
        Hg = self.inverse.times(found.place.g)
        if float(s.dot(y)) > 1e-10 * float(s.norm()) * float(y.norm()):
            update = change(s, y, Hg - self._Hg, -found.step * float(s.dot(here.g)))  # sᵀBs, as Bs = −αg
            self.inverse.add(update)
            Hg = update.of(Hg, found.place.g)
        self.here, self._before, self._Hg = found.place, here.loss, Hg
        return True


def _prefers_bursts(memory: Memory) -> bool:
    return memory.direct < memory.burst


def _judged(memory: Memory) -> bool:
    return memory.left <= memory.patience - LEARNING
