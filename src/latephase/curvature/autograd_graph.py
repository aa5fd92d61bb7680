"""Questions to the graph that autograd keeps of a computation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.autograd.graph import Node


def newest_node() -> int:
    """The number of the newest node of this thread; later nodes have larger numbers."""
    with torch.enable_grad():
        node = torch.zeros((), requires_grad=True, device="cpu").clone().grad_fn
    return int(node._sequence_nr())  # type: ignore[union-attr]


def nodes(root: Node | None) -> Iterator[Node]:
    """A node and all nodes below it, once each."""
    seen: set[Node] = set()
    stack = [root]
    while stack:
        node = stack.pop()
        if node is not None and node not in seen:
            seen.add(node)
            yield node
            stack.extend(parent for parent, _ in node.next_functions)


def parameter_below(root: Node | None, parameters: Sequence[Tensor]) -> Tensor | None:
    """One of the parameters that a node's value was computed from, if any."""
    wanted = {id(p) for p in parameters}
    leaves = (getattr(node, "variable", None) for node in nodes(root))
    return next((leaf for leaf in leaves if id(leaf) in wanted), None)


def parameter_made_use_of_before(loss: Tensor, start: int, parameters: Sequence[Tensor]) -> Tensor | None:
    """A parameter that the loss depends on by way of a node older than ``start``, if any."""
    old = [n for n in nodes(loss.grad_fn) if n._sequence_nr() <= start and not hasattr(n, "variable")]
    return next((p for n in old if (p := parameter_below(n, parameters)) is not None), None)


def is_custom(node: Node) -> bool:
    """Whether a node's backward pass is somebody's own: a Python ``autograd.Function``, or one of a C++ extension."""
    return isinstance(node, torch._C._FunctionBase) or "CppNode" in node.name()


def custom_functions(loss: Tensor) -> list[str]:
    """Names of the custom Functions in a loss's graph."""
    return sorted({node.name().removesuffix("Backward") for node in nodes(loss.grad_fn) if is_custom(node)})


def has_reentrant_checkpoint(loss: Tensor) -> bool:
    """Whether the graph has a node that lets no gradient through, and does not say so."""
    return any(type(node).__name__ == "CheckpointFunctionBackward" for node in nodes(loss.grad_fn))
