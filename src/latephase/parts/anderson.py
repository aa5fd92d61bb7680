"""Anderson's acceleration: a fixed point from few evaluations, by the combination of the last ones that fits best."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

SLOW = 0.7  # what an iteration leaves of the merit, above which another one is not worth its price


def anderson(
    f: Tensor, move: Callable[[Tensor], Tensor], merit: Callable[[Tensor], float], *, most: int, depth: int = 8
) -> tuple[Tensor, float]:
    """Follow p ← p + f(p) from 0 towards f(p) = 0 for as long as the merit gets better.

    Each iterate is p + f less the combination of the last changes of both that explains f best (Walker & Ni 2011): for
    a linear f that is GMRES. So it converges where the plain iteration would not, as long as f goes astray in few
    directions.

    Args:
        f: f(0), shape (P,).
        move: `p -> f(p)`, shape (P,).
        merit: A number that is lower for better p.
        most: Most iterations, ≥ 1.
        depth: How many changes are remembered.

    Returns:
        The iterate of least merit, and that.

    >>> A = torch.tensor([[1.0, 0.2], [0.0, 3.0]])  # the plain iteration does not converge: |1 - 3| > 1
    >>> b = torch.ones(2)
    >>> p, _ = anderson(b, lambda p: b - A @ p, lambda p: float((p - A.inverse() @ b).norm()), most=5)
    >>> p, A.inverse() @ b
    (tensor([...]), tensor([...]))
    """
    p, depth = torch.zeros_like(f), min(depth, f.numel())
    best, least = p, math.inf
    steps: list[Tensor] = []
    changes: list[Tensor] = []
    for n in range(most):
        following = p + f
        if changes:
            Q, R = torch.linalg.qr(torch.stack(changes, dim=1))
            weights = torch.linalg.solve_triangular(R, (Q.T @ f).unsqueeze(1), upper=True)
            following -= (torch.stack(steps, dim=1) + torch.stack(changes, dim=1)).mm(weights).squeeze(1)
        before, now = least, merit(following)
        if not now < before:
            break
        best, least = following, now
        if n == most - 1 or now > SLOW * before:
            break
        before_f, f = f, move(following)
        steps, changes = [*steps, following - p][-depth:], [*changes, f - before_f][-depth:]
        p = following
    return best, least
