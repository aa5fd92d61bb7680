"""Merge graphs: copy one into another that computes some of the same.

The traces of forward and reverse differentiation both contain the network itself. Shared, it runs once per point, both
modes use the same residuals, and dropout draws the same masks for both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import fx
from torch.fx.node import Argument, Node, Target

from latephase.curvature.rewrite.nodes import alike, is_random, is_writing, outputs_of
from latephase.curvature.rewrite.zeros import gives_zero, without_zero

aten = torch.ops.aten

IDENTITIES = {aten.alias.default, aten.detach.default, aten.lift_fresh.default}

Key = tuple[object, ...]


def append(target: fx.Graph, source: fx.Graph, inputs: Sequence[Node]) -> list[Argument]:
    """Copy ``source``, with its inputs replaced, into ``target``, and return what it outputs there.

    What ``target`` computes already is shared. Random operations are shared in their order: the k-th of the source is
    the k-th of the target. Views of the whole and additions of known zeros are left out.
    """
    env: dict[Node, Argument] = dict(zip((n for n in source.nodes if n.op == "placeholder"), inputs, strict=True))
    merged = _Merged(target)
    for node in source.nodes:
        if node.op == "get_attr":
            raise RuntimeError("the closure uses a tensor that cannot be traced back to where it came from")
        if node.op == "call_function":
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), env.__getitem__)
            env[node] = merged.result(node, args, kwargs)
    return [env[n] if isinstance(n, Node) else n for n in outputs_of(source)]


class _Merged:
    """A graph that grows, and in which nothing is computed twice."""

    def __init__(self, graph: fx.Graph) -> None:
        self._graph = graph
        self._known = {_key(n.target, n.args, n.kwargs): n for n in graph.nodes if _is_shareable(n)}
        self._drawn = iter([n for n in graph.nodes if is_random(n)])

    def result(self, node: Node, args: tuple[Argument, ...], kwargs: dict[str, Argument]) -> Argument:
        """What another graph's ``node`` is in this one, where ``args`` and ``kwargs`` are its arguments."""
        if node.target in IDENTITIES:
            return args[0]
        found = without_zero(node, args, kwargs)
        if found is None and is_random(node):
            found = self._drawn_as(node)
        if found is None and _is_shareable(node):
            found = self._known.get(_key(node.target, args, kwargs))
        return self._added(node, args, kwargs) if found is None else found

    def _drawn_as(self, node: Node) -> Node | None:
        """The next of the random operations that were here before, which has to be the same."""
        found = next(self._drawn, None)
        if found is not None and not (found.target is node.target and alike(found, node)):
            raise RuntimeError("two traces of the closure draw different random numbers")
        return found

    def _added(self, node: Node, args: tuple[Argument, ...], kwargs: dict[str, Argument]) -> Node:
        new = self._graph.create_node("call_function", node.target, args, kwargs)
        new.meta.update(val=node.meta.get("val"), zero=gives_zero(node.target, args))
        if _is_shareable(node):
            self._known[_key(node.target, args, kwargs)] = new
        return new


def _is_shareable(node: Node) -> bool:
    """Whether one result can serve wherever the same operation is applied to the same arguments."""
    return node.op == "call_function" and not any(map(is_writing, node.users)) and not is_random(node)


def _key(target: Target, args: Sequence[Argument], kwargs: Mapping[str, Argument]) -> Key:
    return target, _hashable(args), _hashable(kwargs)


def _hashable(value: object) -> Key:
    if isinstance(value, (list, tuple)):
        return tuple(_hashable(item) for item in value)
    if isinstance(value, dict):
        return tuple((key, _hashable(item)) for key, item in value.items())
    return (type(value), value)
