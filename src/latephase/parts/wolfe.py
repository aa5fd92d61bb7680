"""A search along a line by gradients, for a point that satisfies the weak Wolfe conditions."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from latephase.parts.solver import DampedProblem, NoSolutionError

DECREASE, SLOPE = 1e-4, 0.9  # of the conditions (Nocedal & Wright 2006, Section 3.1)
MOST = 25  # trial points


class Place(NamedTuple):
    """A point of a search: p, the loss on the model batch at θ + p, and the gradient there."""

    p: Tensor
    loss: float
    g: Tensor


def place(problem: DampedProblem, p: Tensor) -> Place:
    """Return the place at θ + p.

    Raises:
        NoSolutionError: If the gradient is the caller's own, and so there is none elsewhere.
    """
    found = problem.gradient_at(p)
    if found is None:
        raise NoSolutionError("gradients are needed at trial points, and the gradient is the caller's own")
    return Place(p, *found)


class Found(NamedTuple):
    """What a search came to.

    Attributes:
        place: Where the loss is lower; None where none is.
        step: α of it.
        gradients: How many it took.
    """

    place: Place | None
    step: float
    gradients: int


def weak_wolfe(here: Place, d: Tensor, at: Callable[[Tensor], Place], first: float = 1.0) -> Found:
    """Search along d, a direction of descent of shape (P,), by cubic interpolation in a bracket.

    Args:
        here: Where to start.
        d: Where to go.
        at: `p -> Place`.
        first: The first α to try.

    Returns:
        The last place tried, if the loss is lower there; the conditions hold there but for rounding.
    """
    start = _Trial(0.0, here.loss, float(here.g.dot(d)))
    if not start.slope < 0.0:
        return Found(None, 0.0, 0)
    lower, upper, alpha, gradients = start, None, first, 0
    while gradients < MOST:
        there, gradients = at(here.p + alpha * d), gradients + 1
        trial = _Trial(alpha, there.loss, float(there.g.dot(d)))
        if not trial.loss <= here.loss + DECREASE * alpha * start.slope:
            upper = trial
        elif trial.slope < SLOPE * start.slope:
            lower = trial
        else:
            break
        alpha = _between(lower, upper) if upper is not None else 2.0 * alpha
    return Found(there if there.loss < here.loss else None, trial.alpha, gradients)


def first_step(here: Place, d: Tensor, before: float | None) -> float:
    """A first α for which the loss falls by as much as it did last time, from `before`, at most 1 (ibid., eq. 3.60)."""
    slope = float(here.g.dot(d))
    if before is None or not slope < 0.0:
        return 1.0
    guess = 2.02 * (here.loss - before) / slope
    return min(1.0, guess) if guess > 0.0 else 1.0


class _Trial(NamedTuple):
    alpha: float
    loss: float
    slope: float


def _between(lower: _Trial, upper: _Trial) -> float:
    """The minimum of the cubic through both (Nocedal & Wright 2006, eq. 3.59), not too close to either."""
    width = upper.alpha - lower.alpha
    middle = 0.5 * (lower.alpha + upper.alpha)
    if not (math.isfinite(upper.loss) and math.isfinite(upper.slope)):
        return middle
    d1 = lower.slope + upper.slope - 3.0 * (upper.loss - lower.loss) / width
    square = d1 * d1 - lower.slope * upper.slope
    if not square >= 0.0:
        return middle
    d2 = math.sqrt(square)
    found = upper.alpha - width * (upper.slope + d2 - d1) / (upper.slope - lower.slope + 2.0 * d2 or math.nan)
    return min(max(found, lower.alpha + 0.1 * width), upper.alpha - 0.1 * width) if math.isfinite(found) else middle
