"""What a late-phase run may spend: seconds of training, or counted work, which repeats exactly."""

import re
from dataclasses import dataclass
from typing import NamedTuple


class Allowance(NamedTuple):
    """A budget in one of the two units that are metered.

    Attributes:
        amount: How much, > 0.
        unit: ``"seconds"`` of training time, or ``"gradients"``: work, counted in gradients on a batch of SGD's size.
    """

    amount: float
    unit: str


@dataclass(frozen=True)
class Budget:
    """A budget as it is written: ``10%`` (of the training's seconds), ``30s`` or ``200gradients``.

    Attributes:
        amount: The number, > 0.
        unit: ``"%"``, ``"s"`` or ``"gradients"``.
    """

    amount: float
    unit: str

    @classmethod
    def parse(cls, text: str) -> "Budget":
        """Read a budget.

        >>> str(Budget.parse("2.5 s"))
        '2.5s'

        Raises:
            ValueError: If it is none.
        """
        match = re.fullmatch(r"\s*([0-9.]+(?:e-?[0-9]+)?)\s*(%|s|gradients)\s*", text)
        try:
            if match is not None and float(match[1]) > 0.0:
                return cls(float(match[1]), match[2])
        except ValueError:
            pass
        raise ValueError(f"a budget is a positive number with a unit, such as 10%, 30s or 200gradients, not {text!r}")

    def __str__(self) -> str:
        return f"{self.amount:g}{self.unit}"

    def allowance(self, training_seconds: float) -> Allowance:
        """Return what a run may spend after a training of so many seconds."""
        if self.unit == "%":
            return Allowance(self.amount / 100 * training_seconds, "seconds")
        return Allowance(self.amount, "seconds" if self.unit == "s" else "gradients")
