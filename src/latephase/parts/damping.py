"""The Levenberg–Marquardt rule for the damping λ (Martens 2010, Section 4.1)."""

from __future__ import annotations

import math


def levenberg_marquardt(actual: float, predicted: float) -> float:
    """Return the factor on λ after a step changed the loss by ``actual`` where the model said ``predicted``.

    3/2 where the reduction ratio ρ = actual / predicted is below 1/4, 2/3 where it is above 3/4, otherwise 1
    (thresholds and factors: Martens 2010, Section 4.1; Martens & Sutskever 2012, Section 8.5). The comparisons
    are made without the division. A change that is not a number, or a model that predicts no decrease, is a failure.

    Args:
        actual: L(θ + p) − L(θ) on the evaluation batch.
        predicted: The quadratic model's change from zero, damping included; negative for a descent step.
    """
    if math.isnan(actual) or not predicted < 0.0 or actual > 0.25 * predicted:
        return 3.0 / 2.0
    if actual < 0.75 * predicted:
        return 2.0 / 3.0
    return 1.0


def constant_damping(actual: float, predicted: float) -> float:
    """Leave λ alone: what is left when the adaptation is switched off."""
    return 1.0


def clipped(damping: float, bounds: tuple[float, float]) -> float:
    """Keep λ within ``bounds``; no damping at all (λ = 0) stays what it is."""
    return damping if damping == 0.0 else min(max(damping, bounds[0]), bounds[1])
