"""Rules for the damping λ."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from latephase.checks import non_negative, positive


class DampingRule(Protocol):
    """Says how λ changes after a step was tried.

    Doubling and halving, for example:

    >>> rule: DampingRule = lambda actual, predicted: 0.5 if actual < 0.0 else 2.0
    >>> rule(-0.1, -1.0)
    0.5
    """

    def __call__(self, actual: float, predicted: float) -> float:
        """Return the factor on λ after the loss changed by `actual` where the model said `predicted`.

        Args:
            actual: L(θ + p) − L(θ) on the evaluation batch.
            predicted: The quadratic model's change from zero, damping included; negative for a descent step.
        """


@dataclass(frozen=True)
class LevenbergMarquardt:
    """Trust the model less where it was wrong, and more where it was right (Martens 2010, Section 4.1).

    λ grows where the reduction ratio ρ = actual / predicted is below `lower` and shrinks where it is above
    `upper`. The comparisons are made without the division. A change that is not a number, or a model that predicts
    no decrease, is a failure, after which λ grows.

    Attributes:
        lower: Below this ρ the model was wrong. (1/4: Martens 2010, Section 4.1.)
        upper: Above this ρ it was right. (3/4, likewise.)
        increase: The factor on λ then, ≥ 1. (3/2: Martens & Sutskever 2012, Section 8.5.)
        decrease: The factor here, > 0 and at most 1. (2/3, likewise.)
        beyond: Once λ is beyond the largest curvature it grows by no more than this share of that, ≥ 0, where ρ is
            measured on other data than the model, and that is the GGN's. A larger λ hardly turns the step then, and
            shortens it; what parts model and loss is the gradient's noise, which no λ mends, and λ would grow for ever.
            (Hessians need λ against negative curvature.) So steps are shortened as 1 / (1 + t · `beyond`) after t
            steps, which lets noise average out as a decaying learning rate does. With 0 λ rests at the curvature,
            with `math.inf`, as published, it grows by `increase` there, too.

    >>> LevenbergMarquardt()(actual=-0.1, predicted=-1.0)
    1.5
    """

    lower: float = 1.0 / 4.0
    upper: float = 3.0 / 4.0
    increase: float = 3.0 / 2.0
    decrease: float = 2.0 / 3.0
    beyond: float = 1.0 / 50.0

    def __post_init__(self) -> None:
        for name in ("lower", "upper", "increase", "decrease"):
            positive(name, getattr(self, name))
        if self.beyond != math.inf:
            non_negative("beyond", self.beyond)
        if not self.lower <= self.upper:
            raise ValueError(f"lower must be at most upper, not {self.lower!r} and {self.upper!r}")
        if not self.decrease <= 1.0 <= self.increase:
            raise ValueError(f"decrease ≤ 1 ≤ increase must hold, not {self.decrease!r} and {self.increase!r}")

    def __call__(self, actual: float, predicted: float) -> float:
        """See `DampingRule`."""
        if math.isnan(actual) or not predicted < 0.0 or actual > self.lower * predicted:
            return self.increase
        if actual < self.upper * predicted:
            return self.decrease
        return 1.0


@dataclass(frozen=True)
class ConstantDamping:
    """Leave λ alone: what is left when the adaptation is switched off.

    >>> ConstantDamping()(actual=-0.1, predicted=-1.0)
    1.0
    """

    def __call__(self, actual: float, predicted: float) -> float:
        """See `DampingRule`."""
        return 1.0


def clipped(damping: float, bounds: tuple[float, float]) -> float:
    """Keep λ within `bounds`; no damping at all (λ = 0) stays what it is."""
    return damping if damping == 0.0 else min(max(damping, bounds[0]), bounds[1])
