"""How far to go along the chosen direction (Martens & Sutskever 2012, Section 8.8)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple


class LineSearchResult(NamedTuple):
    """The factor on the proposed step, 0 where none was acceptable, and the loss there."""

    factor: float
    loss: float


def armijo(
    loss_at: Callable[[float], float],
    loss_0: float,
    slope: float,
    *,
    c: float = 1e-2,
    beta: float = 0.8,
    max_reductions: int = 20,
) -> LineSearchResult:
    """Shorten the step until the loss falls significantly: f(α) ≤ f(0) + c α f′(0), with α = 1, β, β², ….

    Args:
        loss_at: Loss on the evaluation batch at ``factor`` times the proposed step.
        loss_0: The loss at factor 0.
        slope: Directional derivative f′(0), the gradient on the model batch times the proposed step.
        c: What counts as significant (0.01: Martens & Sutskever 2012, Section 8.8).
        beta: The factor of each reduction (0.8: Tatzel et al. 2022, Appendix A.1).
        max_reductions: Most reductions (20, likewise). The last step size tried is β²⁰ ≈ 0.012.

    Returns:
        The first factor that satisfies the condition; factor 0 where none does or the direction is no descent
        direction. The loss never rises: with f′(0) < 0 the condition implies f(α) < f(0).
    """
    factor = 1.0
    if slope < 0.0:
        for _ in range(max_reductions + 1):
            loss = loss_at(factor)
            if math.isfinite(loss) and loss <= loss_0 + c * factor * slope and loss < loss_0:
                return LineSearchResult(factor, loss)
            factor *= beta
    return LineSearchResult(0.0, loss_0)


def full_step(loss_at: Callable[[float], float], loss_0: float, slope: float) -> LineSearchResult:
    """Take the proposed step as it is: what is left when the line search is switched off."""
    loss = loss_at(1.0)
    return LineSearchResult(1.0, loss) if math.isfinite(loss) else LineSearchResult(0.0, loss)
