"""Let residual images lie channels last, where that pays on a CPU.

Convolutions take such images without reordering them first. A product with an all-convolutional network gets a sixth
faster, a wide residual network's an eighth; where positions are gathered (max pooling) it would get slower.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence

import torch
from torch import fx
from torch.fx.node import Argument, Node

from latephase.curvature.rewrite.dependence import dependencies, dependents
from latephase.curvature.rewrite.nodes import value_of

aten = torch.ops.aten

# What is right and fast whatever the layout of images is. (A backward of group normalisation, for one, is not.)
LAYOUT_FREE = {
    operator.getitem,
    aten.convolution.default,
    aten.convolution_backward.default,
    aten.native_batch_norm_backward.default,
    aten.constant_pad_nd.default,
    aten.threshold_backward.default,
    aten.gelu_backward.default,
    aten.silu_backward.default,
    aten.tanh_backward.default,
    aten.sigmoid_backward.default,
    aten.avg_pool2d.default,
    aten.avg_pool2d_backward.default,
    aten._adaptive_avg_pool2d.default,
    aten._adaptive_avg_pool2d_backward.default,
    aten.add.Tensor,
    aten.sub.Tensor,
    aten.mul.Tensor,
    aten.div.Tensor,
    aten.div.Scalar,
    aten.neg.default,
    aten.mean.dim,
    aten.sum.dim_IntList,
    aten.expand.default,
    aten.view.default,
    aten.reshape.default,
    aten._to_copy.default,
    aten.clone.default,
}


def lay_channels_last(
    graph: fx.Graph, vectors: Sequence[Node], outputs: Sequence[Argument], residuals: Sequence[Node]
) -> list[Node]:
    """Lay the images among ``residuals`` channels last where that pays; return the residuals anew."""
    linear = dependents(graph, vectors)
    if not _pays((linear & dependencies(outputs)).difference(vectors)):
        return list(residuals)
    for node in linear:
        if node.target is aten.view.default:
            node.target = aten.reshape.default
    return [_relaid(node, linear) if _is_image(node) else node for node in residuals]


def _pays(used: set[Node]) -> bool:
    """Whether the nodes convolve, and all that take or give images do so in any layout."""
    targets = {node.target for node in used}
    on_images = {node.target for node in used if _is_image(node) or any(map(_is_image, node.all_input_nodes))}
    return aten.convolution.default in on_images and on_images <= LAYOUT_FREE and aten.gather.default not in targets


def _relaid(node: Node, linear: set[Node]) -> Node:
    """A copy of an image, channels last, which the nodes in ``linear`` use in its place."""
    graph = node.graph
    with graph.inserting_after(_last_placeholder(graph) if node.op == "placeholder" else node):
        copy = graph.call_function(aten.clone.default, (node,), {"memory_format": torch.channels_last})
    copy.meta.update(node.meta)
    node.replace_all_uses_with(copy, delete_user_cb=linear.__contains__)
    return copy


def _is_image(node: Node) -> bool:
    value = value_of(node)
    return value is not None and value.dim() == 4 and value.is_floating_point()


def _last_placeholder(graph: fx.Graph) -> Node:
    return [node for node in graph.nodes if node.op == "placeholder"][-1]
