"""Multiply by the product of two constants instead of by one after the other.

A normalisation divides by a standard deviation and multiplies by a weight, both constants of the point: multiplied with
each other once per point, they save every product a pass over the activations.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import fx
from torch.fx.node import Argument, Node

from latephase.curvature.rewrite.dependence import dependents
from latephase.curvature.rewrite.nodes import alike

aten = torch.ops.aten


def fold_scales(graph: fx.Graph, vectors: Sequence[Node]) -> None:
    """Multiply x by c₁c₂, a constant of the point, where the trace multiplies first by c₁ and then by c₂."""
    linear = dependents(graph, vectors)
    for node in list(graph.nodes):
        inner, scale = _scaled(node, linear)
        x, inner_scale = _scaled(inner, linear)
        if inner is None or scale is None or inner_scale is None:
            continue
        if len(inner.users) != 1 or not alike(scale, inner_scale) or not alike(node, inner):
            continue
        with graph.inserting_before(node):
            folded = graph.call_function(aten.mul.Tensor, (inner_scale, scale))
        folded.meta.update(scale.meta)
        node.args = (x, folded)
        graph.erase_node(inner)


def _scaled(node: Node | None, linear: set[Node]) -> tuple[Node | None, Node | None]:
    """For a product of one linear and one constant factor: the two; else (None, None)."""
    if node is not None and node.target is aten.mul.Tensor and not node.kwargs:
        pairs: tuple[tuple[Argument, ...], ...] = (node.args, node.args[::-1])
        for x, scale in pairs:
            if isinstance(x, Node) and x in linear and isinstance(scale, Node) and scale not in linear:
                return x, scale
    return None, None
