"""CG-backtracking: which of the CG iterates to take (Martens 2010, Section 4.6)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable


def backtracking_grid(max_iter: int, gamma: float = 1.3) -> frozenset[int]:
    """The iterations whose iterates are candidates: ⌈γʲ⌉ − 1 for j = 0, 1, … (γ: Martens 2010, Section 4.6)."""
    grid = set()
    j = 0
    while (number := math.ceil(gamma**j) - 1) <= max_iter:
        grid.add(number)
        j += 1
    return frozenset(grid)


def cg_backtracking(loss_at: Callable[[int], float], candidates: Iterable[int]) -> int:
    """Walk back from the last candidate for as long as the loss falls, and return the best one seen.

    Not every candidate is evaluated (Martens & Sutskever 2012, Section 8.7). A non-finite loss counts as
    worse than any other, so the walk goes on past it.

    Args:
        loss_at: Loss on the evaluation batch at the iterate with this number.
        candidates: Numbers of the iterates.
    """
    numbers = sorted(candidates, reverse=True)
    best, best_loss = numbers[0], loss_at(numbers[0])
    for number in numbers[1:]:
        loss = loss_at(number)
        if math.isfinite(best_loss) and not loss < best_loss:
            break
        if math.isfinite(loss):
            best, best_loss = number, loss
    return best


def last_iterate(loss_at: Callable[[int], float], candidates: Iterable[int]) -> int:
    """Take the last iterate: what is left when CG-backtracking is switched off."""
    return max(candidates)
