"""What depends on what in a graph."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from torch import fx
from torch.fx.node import Argument, Node


def dependents(graph: fx.Graph, roots: Sequence[Node]) -> set[Node]:
    """The nodes that depend on ``roots``, themselves included."""
    found = set(roots)
    for node in graph.nodes:
        if any(source in found for source in node.all_input_nodes):
            found.add(node)
    return found


def dependencies(outputs: Sequence[Argument], given: Collection[Node] = ()) -> set[Node]:
    """The nodes that ``outputs`` depend on, themselves included, once ``given`` are known."""
    found: set[Node] = set()
    stack = [node for node in outputs if isinstance(node, Node)]
    while stack:
        node = stack.pop()
        if node not in found and node not in given:
            found.add(node)
            stack.extend(node.all_input_nodes)
    return found
