"""A walk by gradients, whose approximation of the inverse Hessian learns from each move."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from latephase.parts.broyden import Inverse, change
from latephase.parts.solver import DampedProblem, Path
from latephase.parts.wolfe import Place, first_step, weak_wolfe


class Walk:
    """Self-scaled Broyden from a place.

    Args:
        start: The place.
        inverse: H, which learns from each move.
        before: The loss at the place before it; None where there is none.

    Attributes:
        here: Where it has come to.
        gradients: How many it has taken.
        before: The loss at the place before `here`.
    """

    def __init__(self, start: Place, inverse: Inverse, before: float | None = None) -> None:
        self.here, self._inverse, self.gradients, self.before = start, inverse, 0, before
        self._Hg = inverse.times(start.g)
        self._loss_0 = start.loss

    @property
    def rate(self) -> float:
        """By how much a gradient has lowered the logarithm of the loss."""
        return math.log(self._loss_0 / self.here.loss) / max(self.gradients, 1) if self.here.loss > 0.0 else math.inf

    def advance(self, at: Callable[[Tensor], Place]) -> bool:
        """Move once; False where no step along the direction lowers the loss."""
        here, d = self.here, -self._Hg
        found = weak_wolfe(here, d, at, first_step(here, d, self.before))
        self.gradients += found.gradients
        if found.place is None:
            return False
        s, y = found.place.p - here.p, found.place.g - here.g
        Hg = self._inverse.times(found.place.g)
        if float(s.dot(y)) > 1e-10 * float(s.norm()) * float(y.norm()):
            update = change(s, y, Hg - self._Hg, -found.step * float(s.dot(here.g)))  # sᵀBs, as Bs = −αg
            self._inverse.add(update)
            Hg = update.of(Hg, found.place.g)
        self.here, self.before, self._Hg = found.place, here.loss, Hg
        return True

    def path(self, problem: DampedProblem) -> Path:
        """Return the way here from zero as a step to take."""
        p = self.here.p.type_as(problem.b)
        loss = problem.loss_at(p)
        fall = loss - problem.loss_0
        return Path(
            {self.gradients: p},
            fall,
            self.gradients,
            damping_factor=1.0,
            slope=fall,
            losses={self.gradients: loss},
            method=f"{self.gradients} gradients of self-scaled Broyden",
        )
