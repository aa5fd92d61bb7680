"""λ by measurement: steps for several λ from one factorisation, judged by the loss after each."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from latephase.checks import positive, positive_integer
from latephase.parts.solver import Path
from latephase.records import CGStop

PROMISING = 0.25  # share of what the model promised, above which smaller λ are tried (Martens 2010, Section 4.1)


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
        return Path(
            {iterations: self.step},
            self.predicted,
            iterations,
            stop,
            damping_factor=self.factor,
            slope=2.0 * self.predicted,  # φ(v) = −½ bᵀv at the minimum v of φ, whose slope at zero is −bᵀv
            losses={iterations: self.loss},
            method=method,
        )


def search(trial: Callable[[float], Trial], loss_0: float, *, spacing: float, most: int) -> Trial:
    """Try λ times powers of the spacing for as long as the loss gets lower; return the best trial.

    Args:
        trial: Tries one factor.
        loss_0: The loss without a step. While none is below it λ goes up.
        spacing: The factor between two λ, above 1.
        most: Most trials.

    Returns:
        The trial with the lowest loss. Where none is below `loss_0` it is not λ that is wrong, which goes up once then.
    """
    best = trial(1.0)
    promising = best.loss < loss_0 and best.loss - loss_0 < PROMISING * best.predicted
    ratio = 1.0 / spacing if promising else spacing
    for _ in range(most - 1):
        following = trial(best.factor * ratio)
        if best.loss < loss_0 and not following.loss < best.loss:
            break
        best = following
    return best if best.loss < loss_0 else best._replace(factor=spacing)


def check_trials(spacing: float, trials: int) -> None:
    """Check the settings that solvers with trials of λ share.

    Raises:
        TypeError: For a wrong type.
        ValueError: For a number that is not allowed.
    """
    positive_integer("trials", trials)
    if not positive("spacing", spacing) > 1.0:
        raise ValueError(f"spacing must be above 1, not {spacing!r}")
