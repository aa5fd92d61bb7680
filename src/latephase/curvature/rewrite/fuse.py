"""Let one pass over memory do the work of two: ``a·b + c`` and ``A@B + C`` become one operation each.

The derivative of a layer is a sum of products, one for its input and one for its weight. Apart from the sum, each of
them would be written to memory and read again.
"""

from __future__ import annotations

from typing import TypeGuard

import torch
from torch import fx
from torch._ops import OpOverload
from torch.fx.node import Argument, Node, Target

from latephase.curvature.rewrite.nodes import alike, value_of

aten = torch.ops.aten

# product → the operation that adds it to something
FUSED: dict[Target, OpOverload] = {aten.mul.Tensor: aten.addcmul.default, aten.mm.default: aten.addmm.default}


def fuse(graph: fx.Graph) -> None:
    """Fuse products into the sums that they are terms of."""
    for node in list(graph.nodes):
        if node.target is aten.add.Tensor and not node.kwargs:
            _reorder_sum(node)
            _fuse_product_into_sum(node)


def _reorder_sum(node: Node) -> None:
    """Turn ``(p + q) + r``, where p is fused with q already, q is a product and r is small, into ``p + (q + r)``.

    A normalisation layer's derivative is such a sum; done this way it takes two passes over the activations, not four.
    """
    for total, small in (node.args, node.args[::-1]):
        rest = _fused_rest(node, total, small)
        if rest is None:
            continue
        assert isinstance(total, Node)
        with node.graph.inserting_before(node):
            inner = node.graph.call_function(aten.addcmul.default, (small, *rest.args))
            outer = node.graph.call_function(aten.addcmul.default, (inner, *total.args[1:]))
        inner.meta.update(rest.meta)
        outer.meta.update(node.meta)
        node.replace_all_uses_with(outer)
        for dead in (node, total, rest):
            _erase(dead)
        return


def _fused_rest(node: Node, total: Argument, small: Argument) -> Node | None:
    """The q of such a sum ``node``, if it is one."""
    if not _is_sole(total, aten.addcmul.default) or alike(node, small) or not alike(node, total):
        return None
    rest = total.args[0]
    if _is_sole(rest, aten.mul.Tensor) and alike(rest, node) and _one_dtype(node, small, *rest.args):
        return rest
    return None


def _fuse_product_into_sum(node: Node) -> None:
    for product, rest in (node.args, node.args[::-1]):
        if not isinstance(product, Node) or len(product.users) != 1:
            continue
        fused = FUSED.get(product.target)
        if fused is not None and alike(node, product) and _one_dtype(node, rest, *product.args):
            with node.graph.inserting_before(node):
                new = node.graph.call_function(fused, (rest, *product.args))
            new.meta.update(node.meta)
            node.replace_all_uses_with(new)
            _erase(node)
            _erase(product)
            return


def _is_sole(node: Argument, target: OpOverload) -> TypeGuard[Node]:
    """Whether a node is a call of ``target`` that nobody else uses."""
    return isinstance(node, Node) and node.target is target and len(node.users) == 1


def _one_dtype(*nodes: Argument) -> bool:
    values = [value_of(node) for node in nodes]
    return len({None if value is None else value.dtype for value in values}) == 1 and values[0] is not None


def _erase(node: Node) -> None:
    node.graph.erase_node(node)
    node.meta.clear()  # its neighbours keep it
