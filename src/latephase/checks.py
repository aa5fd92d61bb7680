"""Checks of arguments: each returns the value it was given, or names the argument, the value and what is allowed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from numbers import Integral, Real
from typing import TypeVar

import torch
from torch import Tensor

Function = TypeVar("Function")
X = TypeVar("X")
Y = TypeVar("Y")


def boolean(name: str, value: object) -> bool:
    """Check for True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, not {value!r}")
    return value


def choice(name: str, value: object, allowed: Iterable[str]) -> str:
    """Check for one of the `allowed` words."""
    allowed = list(allowed)
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, not {value!r}")
    return str(value)


def positive_integer(name: str, value: object) -> int:
    """Check for an integer ≥ 1."""
    return _integer(name, value, 1)


def non_negative_integer(name: str, value: object) -> int:
    """Check for an integer ≥ 0."""
    return _integer(name, value, 0)


def non_negative(name: str, value: object) -> float:
    """Check for a finite number ≥ 0."""
    return _in_range(name, value, 0.0, math.inf)


def positive(name: str, value: object) -> float:
    """Check for a finite number > 0."""
    number = non_negative(name, value)
    if number == 0.0:
        raise ValueError(f"{name} must be > 0 and finite, not {value!r}")
    return number


def fraction(name: str, value: object) -> float:
    """Check for a number in [0, 1]."""
    return _in_range(name, value, 0.0, 1.0)


def positive_fraction(name: str, value: object) -> float:
    """Check for a number in (0, 1]."""
    number = fraction(name, value)
    if number == 0.0:
        raise ValueError(f"{name} must be > 0 and at most 1, not {value!r}")
    return number


def positive_bounds(name: str, value: object) -> tuple[float, float]:
    """Check for a pair 0 < lower ≤ upper, both finite."""
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise TypeError(f"{name} must be a pair (lower, upper), not {value!r}")
    lower, upper = (_in_range(f"{name}[{i}]", bound, 0.0, math.inf) for i, bound in enumerate(value))
    if not 0.0 < lower <= upper:
        raise ValueError(f"{name} must satisfy 0 < lower ≤ upper, not {value!r}")
    return lower, upper


def real_vector(name: str, value: object, like: Tensor) -> Tensor:
    """Check for a real floating-point vector with the shape and device of `like`; return it in its dtype."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor of shape {tuple(like.shape)}, not {type(value).__name__}")
    if value.shape != like.shape or value.device != like.device or not value.is_floating_point():
        raise ValueError(
            f"{name} must be a real floating-point tensor of shape {tuple(like.shape)} on {like.device}, "
            f"not of shape {tuple(value.shape)} and dtype {value.dtype} on {value.device}"
        )
    return value.detach().to(like.dtype)


def floating_dtype(name: str, value: object) -> torch.dtype | None:
    """Check for a floating-point dtype or None."""
    if value is not None and not (isinstance(value, torch.dtype) and value.is_floating_point):
        raise TypeError(f"{name} must be a floating-point torch.dtype or None, not {value!r}")
    return value


def function(name: str, value: Function) -> Function:
    """Check for something that can be called."""
    if not callable(value):
        raise TypeError(f"{name} must be callable, not {value!r}")
    return value


def pairs(name: str, value: Iterable[tuple[X, Y]]) -> list[tuple[X, Y]]:
    """Check for a list, or anything else that can be iterated over, of at least one `(inputs, targets)`."""
    if not hasattr(value, "__iter__") and not hasattr(value, "__getitem__"):
        raise TypeError(f"{name} must be a list of (inputs, targets), not {value!r}")
    entries = list(value)
    if not entries:
        raise ValueError(f"{name} must have at least one (inputs, targets), not none")
    for i, entry in enumerate(entries):
        if not isinstance(entry, (tuple, list)):
            raise TypeError(f"{name}[{i}] must be a pair (inputs, targets), not {type(entry).__name__}")
        if len(entry) != 2:
            raise ValueError(f"{name}[{i}] must be a pair (inputs, targets), not {len(entry)} things")
    return entries


def vector_map(name: str, mapping: Callable[[Tensor], object]) -> Callable[[Tensor], Tensor]:
    """Wrap a function `v -> w` so that each w is checked like `real_vector`, and v stays as it is."""
    function(name, mapping)

    def checked(v: Tensor) -> Tensor:
        return real_vector(f"the result of {name}", mapping(v.clone()), like=v)

    return checked


def _integer(name: str, value: object, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be an integer ≥ {least}, not {value!r}")
    if value < least:
        raise ValueError(f"{name} must be ≥ {least}, not {value!r}")
    return int(value)


def _in_range(name: str, value: object, lower: float, upper: float) -> float:
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, not {value!r}")
    number = float(value)
    if not lower <= number <= upper or math.isinf(number):
        allowed = f"≥ {lower:g} and finite" if math.isinf(upper) else f"in [{lower:g}, {upper:g}]"
        raise ValueError(f"{name} must be {allowed}, not {value!r}")
    return number
