"""What a finish may spend: seconds of the clock, or counted work, which repeats exactly."""

import math
import re
import time
from typing import NamedTuple

_UNITS = {"s": 1.0, "min": 60.0, "h": 3600.0}
_TEXT = re.compile(r"\s*([0-9]*\.?[0-9]+(?:e[+-]?[0-9]+)?)\s*(s|min|h|gradients)\s*", re.IGNORECASE)


class Budget(NamedTuple):
    """How much may be spent.

    Attributes:
        amount: > 0.
        unit: `"seconds"` of the clock, all of the call's; or `"gradients"` on a batch, evaluations not counted.

    >>> Budget.parse("10min"), Budget.parse(30), Budget.parse("300gradients")
    (Budget(amount=600.0, unit='seconds'), Budget(amount=30.0, unit='seconds'), Budget(amount=300.0, unit='gradients'))
    """

    amount: float
    unit: str

    @classmethod
    def parse(cls, given: object) -> "Budget":
        """Read a budget: a number of seconds, or a text such as `"90s"`, `"10min"`, `"2h"` or `"300gradients"`.

        Returns:
            The budget.

        Raises:
            TypeError: If it is neither a number nor a text.
            ValueError: If it is not positive, or has no unit that is known.
        """
        if isinstance(given, bool) or not isinstance(given, (int, float, str)):
            raise TypeError(f"budget must be seconds or a text such as {_EXAMPLES}, not {type(given).__name__}")
        found = _TEXT.fullmatch(given) if isinstance(given, str) else None
        amount = float(found[1]) if found else math.nan if isinstance(given, str) else float(given)
        if not (math.isfinite(amount) and amount > 0):
            raise ValueError(
                f"budget must be a positive number of seconds or a text such as {_EXAMPLES}, not {given!r}"
            )
        unit = found[2].lower() if found else "s"
        return cls(amount, "gradients") if unit == "gradients" else cls(amount * _UNITS[unit], "seconds")

    def __str__(self) -> str:
        if self.unit == "gradients":
            return f"{self.amount:g} gradients"
        return f"{self.amount / 60:.3g} min" if self.amount >= 120 else f"{self.amount:.3g} s"


_EXAMPLES = '"90s", "10min", "2h" or "300gradients"'


class Meter:
    """How much of a budget is gone.

    Args:
        budget: The budget.
        seconds: Spent by an earlier process on the same finish.
        gradients: Likewise.
    """

    def __init__(self, budget: Budget, seconds: float = 0.0, gradients: float = 0.0) -> None:
        self._budget, self.gradients = budget, gradients
        self._since = time.perf_counter() - seconds

    @property
    def seconds(self) -> float:
        """Seconds so far, evaluations and all else included."""
        return time.perf_counter() - self._since

    @property
    def share(self) -> float:
        """The share of the budget that is gone, from 0."""
        return (self.seconds if self._budget.unit == "seconds" else self.gradients) / self._budget.amount
