"""The problem at one point θ, with the graph that its derivatives need."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from latephase.curvature.recording import LossCall, Record, Recording
from latephase.parameters import Parameters

Forward = Callable[[], Any]


_UNREACHED = "does not depend on any trainable parameter of this optimizer"


class DisagreementError(RuntimeError):
    """Two ways to compute the same thing gave different results."""


@dataclass
class Point:
    """A closure's loss and outputs at θ, as functions of ``leaves``.

    Attributes:
        forward: The closure.
        again: A context within which the closure may be run again as if for the first time: same random numbers,
            same buffers, and nothing left behind.
        parameters: The flat view of the parameters.
        leaves: Stand-ins for the parameters (they share their storage), the leaves of the graph.
        loss: A scalar with a graph, until :meth:`drop_graph`.
        outputs: The tensors the closure returned beside the loss, in whatever nesting, that the loss was computed from.
        places: Where they lay among all leaves of the returned structure.
        record: What the closure did.
    """

    forward: Forward
    again: Callable[[], AbstractContextManager[None]]
    parameters: Parameters
    leaves: list[Tensor]
    loss: Tensor
    outputs: list[Tensor]
    places: list[int]
    record: Record

    @property
    def loss_call(self) -> LossCall | None:
        """The call of a known loss function on the outputs that made the loss, if that is how it was made."""
        for call in self.record.loss_calls:
            if (
                call.result is self.loss
                and len(self.outputs) == 1
                and call.args[:1]
                and call.args[0] is self.outputs[0]
            ):
                return call
        return None

    def gradient(self, *, retain_graph: bool) -> Tensor:
        """The gradient of the loss, shape (P,); zero for parameters that the loss does not use.

        Raises:
            RuntimeError: If a parameter was used in a way that substitution does not reach.
            ValueError: If the loss uses no parameter at all.
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
        unused = [grad is None for grad in grads[: len(self.leaves)]]
        if any(unused):
            self.refuse_reentrant_checkpoints()
        if all(unused):
            raise ValueError(f"the loss that {_name(self.forward)} returned {_UNREACHED}")
        return self.parameters.join(grads[: len(self.leaves)])

    def refuse_reentrant_checkpoints(self) -> None:
        """Raise RuntimeError if the graph has a node that lets no gradient through, and does not say so."""
        if any(type(node).__name__ == "CheckpointFunctionBackward" for node in _nodes(self.loss)):
            raise RuntimeError(
                "reentrant checkpointing drops the gradients of the parameters inside it when gradients are asked for "
                "by tensor; use torch.utils.checkpoint.checkpoint(..., use_reentrant=False)"
            )

    def check(self, name: str, mine: Sequence[Tensor], theirs: Sequence[Tensor], tolerance: float = 0.0) -> None:
        """Raise :class:`DisagreementError` unless two computations agree, relative to their norm, up to rounding.

        Args:
            name: What was computed.
            mine: One result.
            theirs: The other.
            tolerance: At least this much is allowed, besides :attr:`tolerance`.
        """
        # All tensors together: one of them may be zero but for rounding, like the gradient of a bias before BatchNorm.
        a, b = (torch.cat([_dense(t).double().reshape(-1) for t in tensors]) for tensors in (mine, theirs))
        error, size = float((a - b).norm()), float(b.norm())
        # Values that are not finite pass: nothing can be said of them, and a step looks for them itself.
        if error > max(tolerance, self.tolerance) * size:
            raise DisagreementError(f"two computations of {name} differ by {error:.1e}, where the norm is {size:.1e}")

    @property
    def tolerance(self) -> float:
        """The square root of the coarsest rounding in play, relative: far above rounding, far below an error."""
        dtypes = {t.dtype for t in (*self.leaves, *self.outputs) if t.is_floating_point()}
        dtypes.update(dtype for call in self.record.fingerprint for dtype in call[1])
        eps = max(torch.finfo(dtype).eps for dtype in dtypes)
        if self.parameters.device.type == "cuda" and torch.backends.cudnn.allow_tf32:
            eps = max(eps, 2.0**-10)
        return eps**0.5

    def random_direction(self, seed: int) -> list[Tensor]:
        """A normal random vector, split into the parameters' shapes; takes nothing from the global stream."""
        generator = torch.Generator(self.parameters.device).manual_seed(seed)
        return [torch.randn(q.shape, generator=generator, device=q.device).to(q.dtype) for q in self.leaves]

    def drop_graph(self) -> None:
        """Keep the values of loss and outputs, and let go of the graph and the activations it holds."""
        self.loss = self.loss.detach()
        self.outputs = [z.detach() for z in self.outputs]
        self.record = self.record._replace(loss_calls=[])


def evaluate(forward: Forward, parameters: Parameters, again: Callable[[], AbstractContextManager[None]]) -> Point:
    """Call ``forward`` once with a graph, watch it, and check what it returns.

    Raises:
        TypeError: If ``forward`` returns neither a scalar loss nor a pair ``(loss, outputs)``.
        ValueError: If the loss does not depend on any trainable parameter.
    """
    leaves = [p.detach().requires_grad_() for p in parameters.tensors]
    recording = Recording(parameters.tensors, leaves)
    with torch.enable_grad(), recording:
        returned = forward()
    loss, outputs = split_return(returned, forward)
    if not loss.requires_grad:
        raise ValueError(
            f"the loss that {_name(forward)} returned has no graph: it was detached, computed under torch.no_grad(), "
            f"or {_UNREACHED}"
        )
    flat = pytree.tree_leaves(outputs)
    places = frontier(loss, flat)
    return Point(forward, again, parameters, leaves, loss, [flat[i] for i in places], places, recording.record)


def _dense(tensor: Tensor) -> Tensor:
    return tensor.detach().to_dense() if tensor.is_sparse else tensor.detach()


def _nodes(loss: Tensor) -> Iterator[Any]:
    """The nodes of a loss's graph."""
    seen = set()
    stack = [loss.grad_fn]
    while stack:
        node = stack.pop()
        if node is not None and node not in seen:
            seen.add(node)
            yield node
            stack.extend(parent for parent, _ in node.next_functions)


def frontier(loss: Tensor, outputs: Sequence[Any]) -> list[int]:
    """Which of the outputs the loss was computed from directly, and not by way of another output.

    A model may return intermediate results beside its predictions; they are not what J and H are about.
    """
    edges = {
        (z.grad_fn, z.output_nr): i for i, z in enumerate(outputs) if isinstance(z, Tensor) and z.grad_fn is not None
    }
    found: set[int] = set()
    seen = set()
    stack = [(loss.grad_fn, loss.output_nr)]
    while stack and edges:
        edge = stack.pop()
        if edge in edges:
            found.add(edges[edge])
        elif edge[0] is not None and edge[0] not in seen:
            seen.add(edge[0])
            stack.extend(edge[0].next_functions)
    return sorted(found)


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
    return loss, outputs


def _describe(value: Any) -> str:
    if isinstance(value, tuple):
        return f"a tuple of {len(value)}: ({', '.join(type(item).__name__ for item in value)})"
    return type(value).__name__


def _name(forward: Forward) -> str:
    return f"{getattr(forward, '__name__', type(forward).__name__)}()"
