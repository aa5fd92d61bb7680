"""CG-backtracking: which of a path's steps to take (Martens 2010, Section 4.6)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from latephase.checks import positive


class StepChoice(Protocol):
    """Chooses one of the steps {p_n} that a solver proposes.

    >>> choice: StepChoice = Backtracking()
    >>> sorted(choice.wanted(8))
    [0, 1, 2, 3, 4, 6, 8]
    >>> choice({2: 0.5, 5: 0.3}.get, [2, 5])
    5
    """

    def wanted(self, max_iter: int) -> frozenset[int]:
        """The numbers of the iterations whose iterates are candidates, when there are at most `max_iter`."""

    def __call__(self, loss_at: Callable[[int], float], candidates: Iterable[int]) -> int:
        """Return the number of the step to take.

        Args:
            loss_at: Loss on the evaluation batch after the step with this number.
            candidates: Numbers of the steps, at least one.
        """


@dataclass(frozen=True)
class Backtracking:
    """Walk back from the last candidate for as long as the loss falls, and take the best one seen.

    Candidates are the iterates ⌈γʲ⌉ − 1 for j = 0, 1, … and the last; not every one is evaluated (Martens & Sutskever
    2012, Section 8.7). A non-finite loss counts as worse than any other, so the walk goes on past it.

    Attributes:
        gamma: γ > 1, the spacing of the candidates. (1.3: Martens 2010, Section 4.6.)

    >>> Backtracking()({2: 0.5, 5: 0.3, 9: 0.4}.get, [2, 5, 9])
    5
    """

    gamma: float = 1.3

    def __post_init__(self) -> None:
        if not positive("gamma", self.gamma) > 1.0:
            raise ValueError(f"gamma must be above 1, not {self.gamma!r}")

    def wanted(self, max_iter: int) -> frozenset[int]:
        """See `StepChoice`."""
        grid = set()
        j = 0
        while (number := math.ceil(self.gamma**j) - 1) <= max_iter:
            grid.add(number)
            j += 1
        return frozenset(grid)

    def __call__(self, loss_at: Callable[[int], float], candidates: Iterable[int]) -> int:
        """See `StepChoice`."""
        numbers = sorted(candidates, reverse=True)
        best, best_loss = numbers[0], loss_at(numbers[0])
        for number in numbers[1:]:
            loss = loss_at(number)
            if math.isfinite(best_loss) and not loss < best_loss:
                break
            if math.isfinite(loss):
                best, best_loss = number, loss
        return best


@dataclass(frozen=True)
class LastIterate:
    """Take the last iterate: what is left when CG-backtracking is switched off.

    >>> LastIterate()({2: 0.5, 5: 0.3, 9: 0.4}.get, [2, 5, 9])
    9
    """

    def wanted(self, max_iter: int) -> frozenset[int]:
        """See `StepChoice`."""
        return frozenset()

    def __call__(self, loss_at: Callable[[int], float], candidates: Iterable[int]) -> int:
        """See `StepChoice`."""
        return max(candidates)
