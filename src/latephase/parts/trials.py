"""λ by measurement: steps for several λ from one factorisation, judged by the loss after each."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from latephase.checks import boolean, positive, positive_integer
from latephase.parts.solver import Path
from latephase.records import CGStop


class Trial(NamedTuple):
    """A step for λ times a factor, the loss after it, and what the model promised."""

    factor: float
    step: Tensor
    loss: float
    predicted: float

    def path(self, loss_0: float, iterations: int, stop: CGStop, method: str) -> Path:
        """The trial as a solver's answer: its step, if that lowers the loss, and its λ in any case."""
        if not self.loss < loss_0:
            return Path({}, 0.0, iterations, damping_factor=self.factor, method=method)
        step, loss = {iterations: self.step}, {iterations: self.loss}
        return Path(step, self.predicted, iterations, stop, False, self.factor, loss, method)


def search(trial: Callable[[float], Trial], loss_0: float, *, spacing: float, most: int) -> Trial:
    """Try λ times powers of the spacing, down while the loss gets lower, else up; return the best trial.

    Args:
        trial: Tries one factor.
        loss_0: The loss without a step. While none is below it λ goes up.
        spacing: The factor between two λ, above 1.
        most: Most trials.

    Returns:
        The trial with the lowest loss; the last one where none is below `loss_0`.
    """
    best, tried = trial(1.0), 1
    for ratio in (1.0 / spacing, spacing):
        if ratio < 1.0 and not best.loss < loss_0:
            continue  # too long already
        start = best
        while tried < most:
            following, tried = trial(best.factor * ratio), tried + 1
            if best.loss < loss_0 and not following.loss < best.loss:
                break
            best = following
        if best is not start:
            break
    return best


def bent(v: Tensor, a: Tensor, b: Tensor, most: float) -> Tensor:
    """Bend a step along the curve that the outputs take (geodesic acceleration, Transtrum & Sethna 2012).

    Args:
        v: The solution of the damped model, shape (P,).
        a: The solution of the same system for the outputs' second derivative along v, shape (P,).
        b: The negative gradient, shape (P,).
        most: The bend is left out where ½‖a‖ is more than `most` · ‖v‖, or where it would lead uphill.

    Returns:
        v − ½a, or v.
    """
    step = v - 0.5 * a
    near = 0.5 * float(a.norm()) <= most * float(v.norm())
    return step if near and float(b.dot(step)) > 0.0 else v


def check_trials(accelerate: bool, spacing: float, trials: int, bend: float) -> None:
    """Check the settings that solvers with trials of λ share.

    Raises:
        TypeError: For a wrong type.
        ValueError: For a number that is not allowed.
    """
    boolean("accelerate", accelerate)
    positive_integer("trials", trials)
    positive("bend", bend)
    if not positive("spacing", spacing) > 1.0:
        raise ValueError(f"spacing must be above 1, not {spacing!r}")
