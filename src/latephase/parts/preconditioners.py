"""Preconditioners for conjugate gradients."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor


def diagonal_preconditioner(
    diagonal: Tensor, damping: float | Tensor, exponent: float = 0.75
) -> Callable[[Tensor], Tensor]:
    """Return `v -> (diag(diagonal) + λI)^(-exponent) v` (Martens 2010, Section 4.7).

    Args:
        diagonal: Non-negative entries, shape (P,): the diagonal of the empirical Fisher matrix.
        damping: λ, a number or a vector of shape (P,).
        exponent: Martens' ξ (0.75, likewise): below 1 it softens the spread of the entries.
    """
    damped = diagonal + damping
    # Without damping a parameter that nothing depends on has a zero there, and no gradient to scale either.
    scale = damped.where(damped > 0.0, 1.0).pow(-exponent)
    return lambda v: scale * v
