"""Steps that follow the outputs' curve: a linear model's step, corrected for what the outputs really do."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

SLOW = 0.7  # what a correction leaves of the merit, above which another one is not worth its forward pass


class Deviation(NamedTuple):
    """What the outputs do at a step beyond their linear model, and how good the step is.

    Attributes:
        e: z(θ + p) − z(θ) − Jp in whatever form the solver works with.
        merit: Returns a number that is lower for better steps.
    """

    e: Tensor
    merit: Callable[[], float]


def corrected(
    v: Tensor, deviation: Callable[[Tensor], Deviation], answer: Callable[[Tensor], Tensor], *, most: int
) -> Tensor:
    """Correct a step for the deviation of the outputs from their linear model, again and again.

    With S the damped model's answer to a change of the outputs, the step p for which the outputs move as the model
    wants them to satisfies p = v − S e(p). Its iteration starts at v − S e(hv) / h², which has the deviation to second
    order: geodesic acceleration (Transtrum & Sethna 2012). Each iteration takes a forward pass and a back-substitution
    and no new Jacobian, and lets λ fall to where the uncorrected step would raise the loss a thousandfold.

    Args:
        v: The solution of the damped model, shape (P,).
        deviation: `p -> e(p)`, and how good p is.
        answer: `e -> S e`, shape (P,).
        most: Most corrections, ≥ 0; with 0 the step is v.

    Returns:
        The iterate of least merit.
    """
    if not most:
        return v
    h = 0.01 if v.dtype == torch.float64 else 0.1  # the noise of rounding grows with the inverse square
    bend = answer(deviation(h * v).e) / h**2
    # Where the second order is as large as the first it says nothing.
    p = v - bend if float(bend.norm()) <= 0.75 * float(v.norm()) else v
    if most == 1:
        return p
    here = deviation(p)
    merit = here.merit()
    for _ in range(most - 1):
        following = v - answer(here.e)
        here = deviation(following)
        before, after = merit, here.merit()
        if not after < before:
            break
        p, merit = following, after
        if after > SLOW * before:
            break
    return p
