"""Zeros that a trace is known to contain, and sums that need not be computed because of them.

Forward differentiation gives a constant beside moving tensors, such as the bias of a normalisation, a tangent of zeros.
What it adds to a tangent would take a pass over memory in every product.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch.fx.node import Argument, Node, Target

from latephase.curvature.rewrite.nodes import alike

aten = torch.ops.aten

ZEROS = {aten.zeros.default, aten.zeros_like.default, aten.new_zeros.default, aten._efficientzerotensor.default}
# Zero in the first argument gives zero out.
ZERO_THROUGH = {
    aten.expand.default,
    aten.view.default,
    aten._unsafe_view.default,
    aten.reshape.default,
    aten.t.default,
    aten.transpose.int,
    aten.permute.default,
    aten.clone.default,
    aten._to_copy.default,
}
BILINEAR = {aten.mm.default, aten.bmm.default, aten.mul.Tensor, aten.convolution.default}


def gives_zero(target: Target, args: Sequence[Argument]) -> bool:
    """Whether an operation can be known to give zero; ``meta["zero"]`` says so of the nodes among its arguments."""
    if target in ZERO_THROUGH:
        return is_zero(args[0])
    if target in BILINEAR:
        biased = target is aten.convolution.default and args[2] is not None
        return not biased and (is_zero(args[0]) or is_zero(args[1]))
    return target in ZEROS


def without_zero(node: Node, args: Sequence[Argument], kwargs: Mapping[str, Argument]) -> Node | None:
    """For ``x + 0`` where nothing else changes: x. ``args`` and ``kwargs`` stand in the place of the node's own."""
    if node.target is aten.add.Tensor and not kwargs:
        for x, other in (args, args[::-1]):
            if is_zero(other) and isinstance(x, Node) and not is_zero(x) and alike(x, node):
                return x
    return None


def is_zero(node: Argument) -> bool:
    """Whether a node is known to be zero."""
    return isinstance(node, Node) and bool(node.meta.get("zero"))
