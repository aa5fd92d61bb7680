"""Rewriting traced programs: merge, simplify, and split by what depends on what."""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any

import torch
from torch import fx

aten = torch.ops.aten

IDENTITIES = {aten.alias.default, aten.detach.default, aten.lift_fresh.default}
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
# product → the operation that adds it to something
FUSED: dict[Any, Any] = {aten.mul.Tensor: aten.addcmul.default, aten.mm.default: aten.addmm.default}
# What it pays to do in a narrower type.
COSTLY = {
    aten.mm.default,
    aten.bmm.default,
    aten.addmm.default,
    aten.baddbmm.default,
    aten.convolution.default,
    aten.convolution_backward.default,
}
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
BILINEAR = {aten.mm.default, aten.bmm.default, aten.mul.Tensor, aten.convolution.default}

Node = fx.Node


def placeholder(graph: fx.Graph, name: str, like: torch.Tensor) -> Node:
    """An input of ``graph``, of the shape and type of ``like``."""
    node = graph.placeholder(name)
    node.meta["val"] = torch.empty_like(like, device="meta")
    return node


def remove_writes(graph: fx.Graph) -> bool:
    """Turn writes into arguments into operations that return something new; return whether that was possible.

    A write is harmless where nothing afterwards looks at the written storage but through the write's own result.
    """
    order = {node: i for i, node in enumerate(graph.nodes)}
    owner: dict[Node, Node] = {}  # node → the node whose storage it shares
    sharing: dict[Node, list[Node]] = {}
    for node in graph.nodes:
        owner[node] = owner[written] if (written := _aliased(node)) is not None else node
        sharing.setdefault(owner[node], []).append(node)
    wanted = dependencies(_outputs(graph))
    for node in list(graph.nodes):
        schema = getattr(node.target, "_schema", None)
        if schema is None or not schema.is_mutable or wanted.isdisjoint(sharing[owner[node]]):
            continue
        views = [n for n in sharing[owner[node]] if order[n] < order[node]]
        if any(order[user] > order[node] for view in views for user in view.users):
            return False
        pure = _without_write(node.target)
        if pure is not None:
            node.target = pure
        elif len(node.args[0].users) > 1 or owner[node] is not node.args[0] or owner[node].op == "placeholder":
            return False
    return True


def _aliased(node: Node) -> Node | None:
    """The argument whose storage the result of ``node`` shares, if any."""
    if node.target is operator.getitem and isinstance(node.args[0], Node):
        return node.args[0]
    schema = getattr(node.target, "_schema", None)
    if node.op != "call_function" or schema is None:
        return None
    for arg, info in zip(node.args, schema.arguments, strict=False):
        if isinstance(arg, Node) and info.alias_info is not None:
            return arg
    return None


def _without_write(target: Any) -> Any:
    """The operation like ``target`` (``aten.relu_``) that returns a new tensor (``aten.relu``), if there is one."""
    name = target._schema.name.removeprefix("aten::")
    if not name.endswith("_") or torch.Tag.nondeterministic_seeded in target.tags:
        return None
    return getattr(getattr(aten, name[:-1], None), target._overloadname, None)


def append(target: fx.Graph, source: fx.Graph, inputs: Sequence[Node]) -> list[Any]:
    """Copy ``source``, with its inputs replaced, into ``target``, and return what it outputs there.

    What ``target`` computes already is shared. Random operations are shared in their order: the k-th of the source is
    the k-th of the target. Views of the whole and additions of known zeros are left out.
    """
    env: dict[Node, Any] = dict(zip((n for n in source.nodes if n.op == "placeholder"), inputs, strict=True))
    known = {_key(n.target, n.args, n.kwargs): n for n in target.nodes if _shareable(n)}
    drawn = iter([n for n in target.nodes if is_random(n)])
    for node in source.nodes:
        if node.op == "get_attr":
            raise RuntimeError("the closure uses a tensor that cannot be traced back to where it came from")
        if node.op != "call_function":
            continue
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), env.__getitem__)
        found = args[0] if node.target in IDENTITIES else _without_zero(node, args, kwargs)
        if found is None and is_random(node):
            found = next(drawn, None)
            if found is not None and not (found.target is node.target and _alike(found, node)):
                raise RuntimeError("two traces of the closure draw different random numbers")
        if found is None and _shareable(node):
            found = known.get(_key(node.target, args, kwargs))
        if found is None:
            found = target.call_function(node.target, args, kwargs)
            found.meta.update(val=node.meta.get("val"), zero=_is_zero(node.target, args))
            if _shareable(node):
                known[_key(node.target, args, kwargs)] = found
        env[node] = found
    return [env[n] if isinstance(n, Node) else n for n in _outputs(source)]


def _outputs(graph: fx.Graph) -> Sequence[Any]:
    return next(n for n in graph.nodes if n.op == "output").args[0]


def _shareable(node: Node) -> bool:
    """Whether one result can serve wherever the same operation is applied to the same arguments."""
    written = any(getattr(getattr(user.target, "_schema", None), "is_mutable", False) for user in node.users)
    return node.op == "call_function" and not written and not is_random(node)


def boundary(graph: fx.Graph, vectors: Sequence[Node], outputs: Sequence[Any]) -> list[Node]:
    """The nodes that do not depend on ``vectors`` and that computing ``outputs`` from ``vectors`` needs to be given."""
    linear = dependents(graph, vectors)
    wanted = dependencies(outputs)
    given = {source for node in wanted & linear for source in node.all_input_nodes} - linear
    given |= {node for node in outputs if isinstance(node, Node) and node not in linear}
    return [node for node in graph.nodes if node in given]


def dependents(graph: fx.Graph, roots: Sequence[Node]) -> set[Node]:
    """The nodes that depend on ``roots``, themselves included."""
    found = set(roots)
    for node in graph.nodes:
        if any(source in found for source in node.all_input_nodes):
            found.add(node)
    return found


def dependencies(outputs: Sequence[Any], given: Collection[Node] = ()) -> set[Node]:
    """The nodes that ``outputs`` depend on, themselves included, once ``given`` are known."""
    found: set[Node] = set()
    stack = [node for node in outputs if isinstance(node, Node)]
    while stack:
        node = stack.pop()
        if node not in found and node not in given:
            found.add(node)
            stack.extend(node.all_input_nodes)
    return found


def lay_channels_last(
    graph: fx.Graph, vectors: Sequence[Node], outputs: Sequence[Any], residuals: Sequence[Node]
) -> list[Node]:
    """Let residual images lie channels last, where that pays on a CPU; return the residuals anew.

    Convolutions take such images without reordering them first. A product with an all-convolutional network gets a
    sixth faster, a wide residual network's an eighth; where positions are gathered (max pooling) it would get slower.
    """
    linear = dependents(graph, vectors)
    used = (linear & dependencies(outputs)).difference(vectors)
    targets = {node.target for node in used}
    on_images = {node.target for node in used if _is_image(node) or any(map(_is_image, node.all_input_nodes))}
    if aten.convolution.default not in on_images or not on_images <= LAYOUT_FREE or aten.gather.default in targets:
        return list(residuals)
    for node in linear:
        if node.target is aten.view.default:
            node.target = aten.reshape.default
    relaid = []
    for node in residuals:
        if _is_image(node):
            with graph.inserting_after(_last_placeholder(graph) if node.op == "placeholder" else node):
                copy = graph.call_function(aten.clone.default, (node,), {"memory_format": torch.channels_last})
            copy.meta.update(node.meta)
            node.replace_all_uses_with(copy, delete_user_cb=linear.__contains__)
            node = copy
        relaid.append(node)
    return relaid


def _is_image(node: Node) -> bool:
    value = _value(node)
    return value is not None and value.dim() == 4 and value.is_floating_point()


def _last_placeholder(graph: fx.Graph) -> Node:
    return [node for node in graph.nodes if node.op == "placeholder"][-1]


def extract(graph: fx.Graph, inputs: Sequence[Node], outputs: Sequence[Any]) -> Callable[..., list[Any]]:
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


def lower_precision(graph: fx.Graph, vectors: Sequence[Node], dtype: torch.dtype) -> None:
    """Let the costly operations that depend on ``vectors`` work in ``dtype``, and return to what they had.

    Casts of what does not depend on the vectors end up among the residuals, and are made once per point.
    """
    linear = dependents(graph, vectors)
    for node in list(graph.nodes):
        if node.target not in COSTLY or node not in linear:
            continue
        wide = {_value(arg).dtype for arg in node.all_input_nodes if _is_float(arg)}  # type: ignore[union-attr]
        if len(wide) != 1:
            continue
        with graph.inserting_before(node):
            narrow = {
                arg: graph.call_function(aten._to_copy.default, (arg,), {"dtype": dtype})
                for arg in node.all_input_nodes
                if _is_float(arg)
            }
        node.args = fx.node.map_arg(node.args, partial(_replaced, narrow))
        results = [user for user in node.users if user.target is operator.getitem] or [node]
        for result in results:
            with graph.inserting_after(result):
                back = graph.call_function(aten._to_copy.default, (result,), {"dtype": wide.copy().pop()})
            back.meta.update(result.meta)
            result.replace_all_uses_with(back, delete_user_cb=lambda user, back=back: user is not back)


def fold_scales(graph: fx.Graph, vectors: Sequence[Node]) -> None:
    """Multiply x by c₁c₂, a constant of the point, where the trace multiplies first by c₁ and then by c₂."""
    linear = dependents(graph, vectors)
    for node in list(graph.nodes):
        inner, scale = _scaled(node, linear)
        x, inner_scale = _scaled(inner, linear)
        if x is None or len(inner.users) != 1 or not _alike(scale, inner_scale) or not _alike(node, inner):
            continue
        with graph.inserting_before(node):
            folded = graph.call_function(aten.mul.Tensor, (inner_scale, scale))
        folded.meta.update(scale.meta)
        node.args = (x, folded)
        graph.erase_node(inner)


def _scaled(node: Any, linear: set[Node]) -> tuple[Any, Any]:
    """For a product of one linear and one constant factor: the two; else (None, None)."""
    if isinstance(node, Node) and node.target is aten.mul.Tensor and not node.kwargs:
        for x, scale in (node.args, node.args[::-1]):
            if x in linear and isinstance(scale, Node) and scale not in linear:
                return x, scale
    return None, None


def _replaced(replacements: dict[Node, Node], node: Node) -> Node:
    return replacements.get(node, node)


def _is_float(node: Node) -> bool:
    value = _value(node)
    return value is not None and value.is_floating_point()


def fuse(graph: fx.Graph) -> None:
    """Let one pass over memory do the work of two: ``a·b + c`` and ``A@B + C`` become one operation each."""
    for node in list(graph.nodes):
        if node.target is aten.add.Tensor and not node.kwargs:
            _reorder_sum(node)
            _fuse_product_into_sum(graph, node)


def _reorder_sum(node: Node) -> None:
    """Turn ``(p + q) + r``, where p is fused with q already, q is a product and r is small, into ``p + (q + r)``.

    A normalisation layer's derivative is such a sum; done this way it takes two passes over the activations, not four.
    """
    pairs: list[Any] = [node.args, node.args[::-1]]
    for total, small in pairs:
        fused = isinstance(total, Node) and total.target is aten.addcmul.default and len(total.users) == 1
        if not fused or _alike(node, small) or not _alike(node, total):
            continue
        rest = total.args[0]
        if isinstance(rest, Node) and rest.target is aten.mul.Tensor and len(rest.users) == 1 and _alike(rest, node):
            if not _one_dtype(node, small, *rest.args):
                continue
            with node.graph.inserting_before(node):
                inner = node.graph.call_function(aten.addcmul.default, (small, *rest.args))
                outer = node.graph.call_function(aten.addcmul.default, (inner, *total.args[1:]))
            inner.meta.update(rest.meta)
            outer.meta.update(node.meta)
            node.replace_all_uses_with(outer)
            for dead in (node, total, rest):
                _erase(dead)
            return


def _erase(node: Node) -> None:
    node.graph.erase_node(node)
    node.meta.clear()  # its neighbours keep it


def _fuse_product_into_sum(graph: fx.Graph, node: Node) -> None:
    for product, rest in (node.args, node.args[::-1]):
        if not isinstance(product, Node) or len(product.users) != 1:
            continue
        fused = FUSED.get(product.target)
        if fused is not None and _alike(node, product) and _one_dtype(node, rest, *product.args):
            with graph.inserting_before(node):
                new = graph.call_function(fused, (rest, *product.args))
            new.meta.update(node.meta)
            node.replace_all_uses_with(new)
            _erase(node)
            _erase(product)
            return


def _value(node: Any) -> torch.Tensor | None:
    """The tensor, with a shape but without values, that a node stood for when it was traced."""
    value = node.meta.get("val") if isinstance(node, Node) else None
    return value if isinstance(value, torch.Tensor) else None


def _alike(a: Node, b: Node) -> bool:
    x, y = _value(a), _value(b)
    return x is not None and y is not None and (x.shape, x.dtype) == (y.shape, y.dtype)


def _one_dtype(*nodes: Any) -> bool:
    values = [_value(node) for node in nodes]
    return len({None if value is None else value.dtype for value in values}) == 1 and values[0] is not None


def _without_zero(node: Node, args: Any, kwargs: Any) -> Node | None:
    """For ``x + 0`` where nothing else changes: x."""
    if node.target is aten.add.Tensor and not kwargs:
        for x, other in (args, args[::-1]):
            if _zero(other) and isinstance(x, Node) and not _zero(x) and _alike(x, node):
                return x
    return None


def _is_zero(target: Any, args: Any) -> bool:
    """Whether an operation can be known to give zero."""
    if target in ZERO_THROUGH:
        return _zero(args[0])
    if target in BILINEAR:
        biased = target is aten.convolution.default and args[2] is not None
        return not biased and (_zero(args[0]) or _zero(args[1]))
    return target in ZEROS


def _zero(node: Any) -> bool:
    return isinstance(node, Node) and bool(node.meta.get("zero"))


def is_random(node: Node) -> bool:
    """Whether a node draws random numbers."""
    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


def _key(target: Any, args: Any, kwargs: Any) -> Any:
    return (target, _hashable(args), _hashable(kwargs))


def _hashable(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return tuple(_hashable(item) for item in value)
    if isinstance(value, dict):
        return tuple((key, _hashable(item)) for key, item in value.items())
    return (type(value), value)
