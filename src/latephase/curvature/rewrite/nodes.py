"""What a node of a traced graph stands for."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import fx
from torch._ops import OpOverload
from torch.fx.node import Argument, Node


def placeholder(graph: fx.Graph, name: str, like: torch.Tensor) -> Node:
    """An input of ``graph``, of the shape and type of ``like``."""
    node = graph.placeholder(name)
    node.meta["val"] = torch.empty_like(like, device="meta")
    return node


def outputs_of(graph: fx.Graph) -> Sequence[Argument]:
    """What ``graph`` returns."""
    outputs = graph.output_node().args[0]
    assert isinstance(outputs, (list, tuple))
    return outputs


def value_of(node: Argument) -> torch.Tensor | None:
    """The tensor, with a shape but without values, that a node stood for when it was traced."""
    value = node.meta.get("val") if isinstance(node, Node) else None
    return value if isinstance(value, torch.Tensor) else None


def alike(a: Argument, b: Argument) -> bool:
    """Whether two nodes stand for tensors of the same shape and type."""
    x, y = value_of(a), value_of(b)
    return x is not None and y is not None and (x.shape, x.dtype) == (y.shape, y.dtype)


def is_random(node: Node) -> bool:
    """Whether a node draws random numbers."""
    return isinstance(node.target, OpOverload) and torch.Tag.nondeterministic_seeded in node.target.tags


def is_writing(node: Node) -> bool:
    """Whether a node writes into one of its arguments."""
    return isinstance(node.target, OpOverload) and node.target._schema.is_mutable
