"""What a closure returned, and what it called `backward` on: the loss, and the outputs if there are any."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor

Forward = Callable[[], object]


class Told(NamedTuple):
    """What a closure returned, and the outputs that another function told."""

    returned: object
    outputs: object


def with_outputs(forward: Forward, outputs: Forward) -> Forward:
    """Return the closure, and with what it returns what `outputs` then says the loss was computed from."""

    def told() -> Told:
        return Told(forward(), outputs())

    told.__name__ = _plain_name(forward)
    return told


def told_outputs(outputs: object, *, ggn: bool) -> Forward | None:
    """Check the option `outputs`; None for `"auto"`."""
    if outputs == "auto":
        return None
    if not callable(outputs):
        raise TypeError(f'outputs must be "auto" or a function without arguments, not {outputs!r}')
    if not ggn:
        raise ValueError(f'outputs must be "auto" with curvature_opt="hessian", which needs none, not {outputs!r}')
    return outputs


def loss_and_outputs(returned: object, differentiated: Sequence[Tensor], forward: Forward) -> tuple[Tensor, object]:
    """Return the loss, a scalar tensor, and the outputs (None where absent).

    A closure that returns outputs beside the loss is taken at its word, and so is a function that tells them (`Told`).
    Of another, as written for any optimizer, the loss is what it called `backward` on, several times the sum: what it
    returns may be detached, a number, or nothing.

    Args:
        returned: What the closure returned.
        differentiated: What it called `backward` on.
        forward: The closure, for its name.

    Raises:
        TypeError: If there is no loss.
        ValueError: If the loss is not one real number.
    """
    if isinstance(returned, Told):
        return loss_and_outputs(returned.returned, differentiated, forward)[0], returned.outputs
    pair = isinstance(returned, tuple) and len(returned) == 2
    loss, outputs = returned if isinstance(returned, tuple) and len(returned) == 2 else (returned, None)
    detached = not isinstance(loss, Tensor) or not loss.requires_grad
    if differentiated and (detached or not pair):
        loss = differentiated[0] if len(differentiated) == 1 else sum(differentiated[1:], start=differentiated[0])
    if not isinstance(loss, Tensor):
        raise TypeError(
            f"{name_of(forward)} must return a scalar loss tensor or (loss, outputs), or call backward() on the loss, "
            f"not return {_describe(returned)}"
        )
    if loss.numel() != 1 or not loss.is_floating_point():
        raise ValueError(
            f"the loss that {name_of(forward)} returned must be one real floating-point number, "
            f"not a tensor of shape {tuple(loss.shape)} and dtype {loss.dtype}"
        )
    return loss, outputs


def _describe(value: object) -> str:
    if isinstance(value, tuple):
        return f"a tuple of {len(value)}: ({', '.join(type(item).__name__ for item in value)})"
    return type(value).__name__


def name_of(forward: Forward) -> str:
    """Return what a closure is called."""
    return f"{_plain_name(forward)}()"


def _plain_name(forward: Forward) -> str:
    return str(getattr(forward, "__name__", type(forward).__name__))
