"""The problem at one point θ, with the graph that its derivatives need."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from latephase.parameters import Parameters

Forward = Callable[[], Any]


class Point(NamedTuple):
    """Loss and outputs at θ, as functions of ``leaves``.

    Attributes:
        loss: A scalar with a graph.
        outputs: What the loss was computed from: a tensor, or any nesting of them; None where the closure
            returned the loss alone.
        leaves: Stand-ins for the parameters (they share their storage), the leaves of the graph.
        parameters: The flat view of the parameters.
    """

    loss: Tensor
    outputs: Any
    leaves: list[Tensor]
    parameters: Parameters

    def gradient(self, *, retain_graph: bool) -> Tensor:
        """The gradient of the loss, shape (P,); zero for parameters that the loss does not use.

        Raises:
            RuntimeError: If a parameter was used in a way that substitution does not reach.
        """
        wanted = [*self.leaves, *self.parameters.tensors]
        grads = torch.autograd.grad(self.loss, wanted, retain_graph=retain_graph, allow_unused=True)
        for p, stray in zip(self.parameters.tensors, grads[len(self.leaves) :], strict=True):
            if stray is not None:
                raise RuntimeError(
                    f"the parameter of shape {tuple(p.shape)} reaches the loss by a way that trial points cannot "
                    "take (TorchScript, or a tensor computed from it before the closure was called); "
                    "compute everything that depends on parameters inside the closure, in plain PyTorch"
                )
        return self.parameters.join(grads[: len(self.leaves)])


def evaluate(forward: Forward, parameters: Parameters) -> Point:
    """Call ``forward`` once with a graph, and check what it returns.

    Raises:
        TypeError: If ``forward`` returns neither a scalar loss nor a pair ``(loss, outputs)``.
        ValueError: If the loss does not depend on any trainable parameter.
    """
    leaves = [p.detach().requires_grad_() for p in parameters.tensors]
    with torch.enable_grad(), parameters.at(leaves):
        returned = forward()
    loss, outputs = split_return(returned, forward)
    if not loss.requires_grad:
        raise ValueError(
            f"the loss that {_name(forward)} returned has no graph: it was detached, computed under torch.no_grad(), "
            "or does not depend on any trainable parameter of this optimizer"
        )
    return Point(loss, outputs, leaves, parameters)


def split_return(returned: Any, forward: Forward) -> tuple[Tensor, Any]:
    """Take what a closure returned apart into the loss, a scalar tensor, and the outputs (None where absent)."""
    loss, outputs = returned if isinstance(returned, tuple) and len(returned) == 2 else (returned, None)
    if not isinstance(loss, Tensor):
        raise TypeError(
            f"{_name(forward)} must return a scalar loss tensor or (loss, outputs), not {_describe(returned)}"
        )
    if loss.numel() != 1 or not loss.is_floating_point():
        raise ValueError(
            f"the loss that {_name(forward)} returned must be one real floating-point number, "
            f"not a tensor of shape {tuple(loss.shape)} and dtype {loss.dtype}"
        )
    return loss.reshape(()), outputs


def _describe(value: Any) -> str:
    if isinstance(value, tuple):
        return f"a tuple of {len(value)}: ({', '.join(type(item).__name__ for item in value)})"
    return type(value).__name__


def _name(forward: Forward) -> str:
    return f"{getattr(forward, '__name__', type(forward).__name__)}()"
