"""Take a graph apart by what depends on the vectors.

What does not depend on them runs once per point, and a product runs the rest, which reads of it the residuals alone.
PyTorch's own partitioners expect one product per point; docs/curvature.md holds them against this one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx
from torch.fx.node import Argument, Node

from latephase.curvature.rewrite.dependence import dependencies, dependents
from latephase.curvature.rewrite.fuse import fuse


def boundary(graph: fx.Graph, vectors: Sequence[Node], outputs: Sequence[Argument]) -> list[Node]:
    """The nodes that do not depend on ``vectors`` and that computing ``outputs`` from ``vectors`` needs to be given."""
    linear = dependents(graph, vectors)
    wanted = dependencies(outputs)
    given = {source for node in wanted & linear for source in node.all_input_nodes} - linear
    given |= {node for node in outputs if isinstance(node, Node) and node not in linear}
    return [node for node in graph.nodes if node in given]


def extract(graph: fx.Graph, inputs: Sequence[Node], outputs: Sequence[Argument]) -> Callable[..., list[Any]]:
    """A function from ``inputs`` to the list of ``outputs``, with the operations in their order in ``graph``."""
    part = fx.Graph()
    env: dict[Node, Node] = {}
    for node in inputs:
        env[node] = part.placeholder(node.name)
        env[node].meta.update(node.meta)
    wanted = dependencies(outputs, given=set(inputs))
    for node in graph.nodes:
        if node in wanted:
            env[node] = part.node_copy(node, env.__getitem__)
    part.output([env[node] if isinstance(node, Node) else node for node in outputs])
    fuse(part)
    for node in part.nodes:
        node.meta.clear()  # the tensors of the trace, which nobody needs any more
    return fx.GraphModule(torch.nn.Module(), part).forward
