"""What a closure returned, and what it called `backward` on: the loss, and the outputs if there are any."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

Forward = Callable[[], object]


def loss_and_outputs(returned: object, differentiated: Sequence[Tensor], forward: Forward) -> tuple[Tensor, object]:
    """Return the loss, a scalar tensor, and the outputs (None where absent).

    A closure that returns outputs beside the loss is taken at its word. Of another, as written for any optimizer, the
    loss is what it called `backward` on, several times the sum: what it returns may be detached, a number, or nothing.

    Args:
        returned: What the closure returned.
        differentiated: What it called `backward` on.
        forward: The closure, for its name.

    Raises:
        TypeError: If there is no loss.
        ValueError: If the loss is not one real number.
    """
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
    return f"{getattr(forward, '__name__', type(forward).__name__)}()"
