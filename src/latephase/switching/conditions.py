"""When one optimizer hands over to another: after so many steps, when a function says so, or when a detector does."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, Protocol, TypeAlias, runtime_checkable

import torch

from latephase.checks import positive_integer

ALLOWED = (
    "a number of steps ≥ 1, a function (steps, loss) -> bool, or an object with update(loss, optimizer) -> bool, "
    "reason, state_dict() and load_state_dict(state)"
)


@runtime_checkable
class Detector(Protocol):
    """Sees the loss of each step, and says when it is time, and why.

    Attributes:
        reason: Why, in words; of use once `update` has returned True.
    """

    reason: str

    def update(self, loss: float, optimizer: torch.optim.Optimizer) -> bool:
        """Take note of a step's loss; return whether it is time."""

    def state_dict(self) -> dict[str, Any]:
        """Return what it needs to go on."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""


When: TypeAlias = "int | Callable[[int, float | None], bool] | Detector"


def condition(when: When) -> When:
    """Check `when`, and return it.

    Returns:
        The same, a number as a plain int.

    Raises:
        TypeError: For anything that is not allowed, naming what is.
        ValueError: For a number of steps below 1.
    """
    if isinstance(when, (type, bool)):
        raise TypeError(f"when must be {ALLOWED}, not {when!r}")
    if hasattr(when, "update"):
        # A dict has it, too, and so has a half-written detector: say what is lacking.
        missing = [name for name in ("reason", "state_dict", "load_state_dict") if not hasattr(when, name)]
        if missing:
            raise TypeError(f"when must be {ALLOWED}; {type(when).__name__} lacks {', '.join(missing)}")
        return when
    if not callable(when) and not hasattr(when, "__index__"):
        raise TypeError(f"when must be {ALLOWED}, not {when!r}")
    return when if callable(when) or isinstance(when, Detector) else positive_integer("when", when)


def why_now(when: When, steps: int, loss: float | None, optimizer: torch.optim.Optimizer) -> str | None:
    """Ask whether it is time to hand over.

    Args:
        when: A checked condition.
        steps: Steps taken, ≥ 1.
        loss: Loss of the last one; None where it was taken without a closure.
        optimizer: Which took it.

    Returns:
        Why it is time, in words; None if it is not.

    Warns:
        UserWarning: If a detector is to judge a step whose loss nobody knows.
    """
    if isinstance(when, int):
        return ("1 step was taken" if steps == 1 else f"{steps:,} steps were taken") if steps >= when else None
    if not isinstance(when, Detector):
        return f"the condition held after {steps} steps" if when(steps, loss) else None
    if loss is None:
        warnings.warn(
            f"{type(when).__name__} sees no loss where a step is taken without a closure, and so cannot tell when to "
            "switch; call step(closure)",
            stacklevel=4,
        )
        return None
    return str(when.reason) if when.update(loss, optimizer) else None


def condition_state(when: When) -> dict[str, Any]:
    """Return the state of a detector; numbers and functions have none."""
    return when.state_dict() if isinstance(when, Detector) else {}


def load_condition_state(when: When, state: dict[str, Any]) -> None:
    """Put it back.

    Raises:
        ValueError: If it is another kind's.
    """
    if isinstance(when, Detector):
        when.load_state_dict(state)
    elif state:
        raise ValueError(f"the state holds that of a detector ({', '.join(state)}), but when is {when!r}")
