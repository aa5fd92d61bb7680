"""Return the factors of a gradient, where it is a sum of matrix products, in place of the gradient.

For a single sample these are a few outer products for each weight of a linear layer: `OuterRows` says what for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import fx
from torch.fx.node import Argument, Node

from latephase.curvature.rewrite.nodes import is_random, outputs_of, value_of

aten = torch.ops.aten
BESIDES = 64  # multiplications that take as long as what else there is to do for a product of two dot products
WORTH = 2.0  # how much less work it must be
SHARE = 0.5  # of all entries of the gradients, that must be in factors


class Product(NamedTuple):
    """A B for A of shape (out, k) and B of shape (k, in), each perhaps turned."""

    A: Node
    B: Node
    A_turned: bool
    B_turned: bool

    @property
    def turned(self) -> Product:
        """Its transpose, Bᵀ Aᵀ."""
        return Product(self.B, self.A, not self.B_turned, not self.A_turned)


def outer_products(graph: fx.Graph) -> tuple[bool, ...]:
    """Let a graph that returns gradients return factors instead, where that pays.

    In place of a matrix of shape (out, in) it then returns two, of shapes (k, out) and (k, in).

    Returns:
        For each gradient whether it is in factors; none is where it would not pay, or where the graph draws numbers.
    """
    gradients = outputs_of(graph)
    found = [_worthwhile(gradient) for gradient in gradients]
    sizes = [_size(gradient) for gradient in gradients]
    factored = sum(size for size, products in zip(sizes, found, strict=True) if products)
    if factored < SHARE * sum(sizes) or any(is_random(node) for node in graph.nodes):
        return (False,) * len(found)
    returned: list[Argument] = []
    output = graph.output_node()
    with graph.inserting_before(output):
        for gradient, products in zip(gradients, found, strict=True):
            if products:
                left = [_turned(graph, product.A, not product.A_turned) for product in products]
                right = [_turned(graph, product.B, product.B_turned) for product in products]
                returned += [graph.call_function(aten.cat.default, (side, 0)) for side in (left, right)]
            else:
                returned.append(gradient)
    output.args = (returned,)
    graph.eliminate_dead_code()
    return tuple(bool(products) for products in found)


def _worthwhile(gradient: Argument) -> list[Product]:
    """The products whose sum a gradient is; none where it is no such sum, or where the sum itself is less work."""
    value = value_of(gradient)
    products = _products(gradient) if value is not None and value.dim() == 2 else None
    if not products or value is None:
        return []
    k = sum(_inner(product) for product in products)
    out, width = value.shape
    return products if WORTH * k**2 * (out + width + BESIDES) <= out * width else []


def _products(node: Argument) -> list[Product] | None:
    """The matrix products whose sum a node is, or None."""
    if not isinstance(node, Node):
        return None
    if node.target is aten.mm.default:
        A, B = node.args
        return [Product(A, B, False, False)] if isinstance(A, Node) and isinstance(B, Node) else None
    if node.target is aten.add.Tensor and not node.kwargs:
        terms = [_products(term) for term in node.args]
        return None if None in terms else [product for term in terms if term for product in term]
    if node.target is aten.t.default or (node.target is aten.permute.default and list(_dims(node)) == [1, 0]):
        inner = _products(node.args[0])
        return None if inner is None else [product.turned for product in inner]
    return None


def _dims(node: Node) -> Sequence[Argument]:
    dims = node.args[1]
    return dims if isinstance(dims, (list, tuple)) else []


def _inner(product: Product) -> int:
    """How many outer products it is."""
    value = value_of(product.A)
    assert value is not None
    return value.shape[0 if product.A_turned else 1]


def _size(gradient: Argument) -> int:
    value = value_of(gradient)
    return 0 if value is None else value.numel()


def _turned(graph: fx.Graph, node: Node, turn: bool) -> Node:
    return graph.call_function(aten.t.default, (node,)) if turn else node
