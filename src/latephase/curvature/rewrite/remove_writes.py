"""Turn writes into arguments into operations that return something new.

Other passes move, share and drop operations, which a write forbids: what reads its storage has to stay behind it.
``torch.func.functionalize`` removes all writes at the price of a second trace; this pass needs none where it succeeds.
"""

from __future__ import annotations

import operator

import torch
from torch import fx
from torch._ops import OpOverload
from torch.fx.node import Node, Target

from latephase.curvature.rewrite.dependence import dependencies
from latephase.curvature.rewrite.nodes import is_writing, outputs_of


def remove_writes(graph: fx.Graph) -> bool:
    """Turn writes into arguments into operations that return something new; return whether that was possible.

    A write is harmless where nothing afterwards looks at the written storage but through the write's own result.
    """
    order = {node: i for i, node in enumerate(graph.nodes)}
    owner, sharing = _storages(graph)
    wanted = dependencies(outputs_of(graph))
    for node in list(graph.nodes):
        if not is_writing(node) or wanted.isdisjoint(sharing[owner[node]]):
            continue
        views = [n for n in sharing[owner[node]] if order[n] < order[node]]
        if any(order[user] > order[node] for view in views for user in view.users):
            return False
        pure = _without_write(node.target)
        if pure is not None:
            node.target = pure
        elif not _writes_to_its_own(node, owner[node]):
            return False
    return True


def _storages(graph: fx.Graph) -> tuple[dict[Node, Node], dict[Node, list[Node]]]:
    """For each node the node whose storage it shares, and for each of those all that share it."""
    owner: dict[Node, Node] = {}
    sharing: dict[Node, list[Node]] = {}
    for node in graph.nodes:
        owner[node] = owner[written] if (written := _aliased(node)) is not None else node
        sharing.setdefault(owner[node], []).append(node)
    return owner, sharing


def _aliased(node: Node) -> Node | None:
    """The argument whose storage the result of ``node`` shares, if any."""
    if node.target is operator.getitem and isinstance(node.args[0], Node):
        return node.args[0]
    if not isinstance(node.target, OpOverload):
        return None
    for arg, info in zip(node.args, node.target._schema.arguments, strict=False):
        if isinstance(arg, Node) and info.alias_info is not None:
            return arg
    return None


def _without_write(target: Target) -> OpOverload | None:
    """The operation like ``target`` (``aten.relu_``) that returns a new tensor (``aten.relu``), if there is one."""
    assert isinstance(target, OpOverload)
    name = target._schema.name.removeprefix("aten::")
    if not name.endswith("_") or torch.Tag.nondeterministic_seeded in target.tags:
        return None
    return getattr(getattr(torch.ops.aten, name[:-1], None), target._overloadname, None)


def _writes_to_its_own(node: Node, owner: Node) -> bool:
    """Whether a node writes to a result that no other node uses, such as numbers that are drawn into a new tensor."""
    return owner is node.args[0] and len(owner.users) == 1 and owner.op != "placeholder"
