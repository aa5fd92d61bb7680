"""How far to go along the chosen direction (Martens & Sutskever 2012, Section 8.8)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from latephase.checks import positive, positive_integer


class LineSearchResult(NamedTuple):
    """The factor on the proposed step, 0 where none was acceptable, and the loss there.

    >>> factor, loss = LineSearchResult(factor=0.8, loss=0.1)
    >>> factor
    0.8
    """

    factor: float
    loss: float


class LineSearch(Protocol):
    """Chooses the length of a step.

    Half of every step, for example:

    >>> search: LineSearch = lambda loss_at, loss_0, slope: LineSearchResult(0.5, loss_at(0.5))
    >>> search(lambda alpha: (alpha - 0.5) ** 2, 0.25, -1.0)
    LineSearchResult(factor=0.5, loss=0.0)
    """

    def __call__(self, loss_at: Callable[[float], float], loss_0: float, slope: float) -> LineSearchResult:
        """Return the factor to take, and the loss there.

        Args:
            loss_at: Loss on the evaluation batch at `factor` times the proposed step.
            loss_0: The loss at factor 0.
            slope: Directional derivative f′(0), the gradient on the model batch times the proposed step.
        """


@dataclass(frozen=True)
class Armijo:
    """Shorten the step until the loss falls significantly: f(α) ≤ f(0) + c α f′(0), with α = 1, β, β², ….

    The first factor that satisfies the condition is taken; factor 0 where none does or the direction is no descent
    direction. The loss never rises: with f′(0) < 0 the condition implies f(α) < f(0).

    Attributes:
        c: What counts as significant, > 0 and below 1. (0.01: Martens & Sutskever 2012, Section 8.8.)
        beta: The factor of each reduction, > 0 and below 1. (0.8: Tatzel et al. 2022, Appendix A.1.)
        max_reductions: Most reductions, ≥ 1. (20, likewise: the last step size tried is β²⁰ ≈ 0.012.)

    >>> Armijo()(lambda alpha: (alpha - 0.4) ** 2, loss_0=0.16, slope=-0.8)
    LineSearchResult(factor=0.64..., loss=0.057...)
    """

    c: float = 1e-2
    beta: float = 0.8
    max_reductions: int = 20

    def __post_init__(self) -> None:
        for name in ("c", "beta"):
            if not positive(name, getattr(self, name)) < 1.0:
                raise ValueError(f"{name} must be > 0 and below 1, not {getattr(self, name)!r}")
        positive_integer("max_reductions", self.max_reductions)

    def __call__(self, loss_at: Callable[[float], float], loss_0: float, slope: float) -> LineSearchResult:
        """See `LineSearch`."""
        factor = 1.0
        if slope < 0.0:
            for _ in range(self.max_reductions + 1):
                loss = loss_at(factor)
                if math.isfinite(loss) and loss <= loss_0 + self.c * factor * slope and loss < loss_0:
                    return LineSearchResult(factor, loss)
                factor *= self.beta
        return LineSearchResult(0.0, loss_0)


@dataclass(frozen=True)
class FullStep:
    """Take the proposed step as it is: what is left when the line search is switched off.

    >>> FullStep()(lambda alpha: alpha**2, loss_0=0.0, slope=-1.0)
    LineSearchResult(factor=1.0, loss=1.0)
    """

    def __call__(self, loss_at: Callable[[float], float], loss_0: float, slope: float) -> LineSearchResult:
        """See `LineSearch`."""
        loss = loss_at(1.0)
        return LineSearchResult(1.0, loss) if math.isfinite(loss) else LineSearchResult(0.0, loss)
