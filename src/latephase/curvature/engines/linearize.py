"""Trace a program once, and get from it linear maps that serve every later point of the same program.

Some operations of a trace depend on θ and the data alone, the others on a vector as well: J v by forward
differentiation, Jᵀu by reverse, H w in output space. Split accordingly, the *primal* part runs once per point, and its
results, the residuals, are constants of the *linear* parts. A product with the GGN is J v, H and Jᵀ, nothing more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import torch
import torch.autograd.forward_ad as fw
from torch import Tensor, fx
from torch.fx.node import Argument, Node

from latephase.curvature.engines.engine import StaleOperatorError
from latephase.curvature.options import Options
from latephase.curvature.point import Point
from latephase.curvature.pull_back import partial_derivatives, pull_back
from latephase.curvature.replay import leaves_where_needed, replay
from latephase.curvature.rewrite.append import append
from latephase.curvature.rewrite.channels_last import lay_channels_last
from latephase.curvature.rewrite.fold_scales import fold_scales
from latephase.curvature.rewrite.lower_precision import lower_precision
from latephase.curvature.rewrite.nodes import is_random, placeholder
from latephase.curvature.rewrite.split import boundary, extract
from latephase.curvature.traced import traced
from latephase.curvature.verify import check, difference_and_norm, norm, rounding

T = TypeVar("T")
Tensors = list[Tensor]
Part = Callable[..., list[Tensor | None]]


class LinearProgram(NamedTuple):
    """A traced program, split. All its tensors are arguments: it serves every point and batch of its kind.

    Attributes:
        primal: (parameters, inputs) → outputs, slopes ∂loss/∂outputs, residuals.
        jvp: (tangents, residuals) → J v, shaped like the outputs; None where it is zero.
        vjp: (cotangents in output space, residuals) → Jᵀu, shaped like the parameters.
        hvp: (directions in output space, residuals) → H w, shaped like the outputs.
        residuals: How many residuals there are.
    """

    primal: Callable[..., Tensors]
    jvp: Part
    vjp: Part
    hvp: Part
    residuals: int


def trace(point: Point, options: Options) -> LinearProgram:
    """Return the program of `point`, traced. Nothing is computed: the tensors of a trace have shapes but no values.

    Raises:
        RuntimeError: If it cannot be traced.
        NotImplementedError: If one of its operations has no forward derivative.
        TypeError: If one of them takes something that a trace has no form for.
    """
    if point.program.unseen is not None:
        raise RuntimeError(f"{point.program.unseen} cannot be run again from a record of torch functions")
    if any(p._backward_hooks for p in point.leaves):
        raise RuntimeError("a parameter has a gradient hook, which no trace contains")
    merged = merge(point)
    graph, vectors, products = merged.graph, merged.vectors, merged.products
    fold_scales(graph, vectors)
    if options.product_dtype is not None:
        lower_precision(graph, vectors, options.product_dtype)
    residuals = boundary(graph, vectors, products)
    if point.parameters.device.type == "cpu":
        residuals = lay_channels_last(graph, vectors, products, residuals)
    return _split(merged, residuals, options)


class Merged(NamedTuple):
    """Both traces of a program in one graph.

    Attributes:
        graph: The graph.
        primals: Its inputs that stand for parameters and for the program's inputs.
        tangents: Those that stand for vectors v, shaped like the parameters.
        cotangents: Those that stand for vectors u, shaped like the outputs.
        directions: Those that stand for vectors w, likewise.
        values: Outputs and slopes.
        jvp: J v.
        vjp: Jᵀu.
        hvp: H w.
    """

    graph: fx.Graph
    primals: list[Node]
    tangents: list[Node]
    cotangents: list[Node]
    directions: list[Node]
    values: list[Argument]
    jvp: list[Argument]
    vjp: list[Argument]
    hvp: list[Argument]

    @property
    def vectors(self) -> list[Node]:
        """All inputs that products are linear in."""
        return [*self.tangents, *self.cotangents, *self.directions]

    @property
    def products(self) -> list[Argument]:
        """All that depends on them."""
        return [*self.jvp, *self.vjp, *self.hvp]


def merge(point: Point) -> Merged:
    """Trace the program of `point` in reverse and in forward mode, and merge the traces."""
    z = point.outputs
    reverse_mode = _made(_reverse_mode(point), point, z, z)
    forward_mode = _made(_forward_mode(point), point, point.leaves)
    graph = fx.Graph()
    parameters, inputs, tangents, cotangents, directions = (
        [placeholder(graph, f"{kind}_{i}", tensor) for i, tensor in enumerate(tensors)]
        for kind, tensors in {
            "parameter": point.leaves,
            "input": [tensor for tensor, _ in point.program.inputs],
            "tangent": point.leaves,
            "cotangent": z,
            "direction": z,
        }.items()
    )
    primals = [*parameters, *inputs]
    reverse = append(graph, reverse_mode, [*primals, *cotangents, *directions])
    values, hvp, vjp = _cut(reverse, [2 * len(z), len(z), len(parameters)])
    jvp = append(graph, forward_mode, [*primals, *tangents])
    return Merged(graph, primals, tangents, cotangents, directions, values, jvp, vjp, hvp)


def _split(merged: Merged, residuals: Sequence[Node], options: Options) -> LinearProgram:
    """Take the graph apart into what runs once per point and what runs in every product."""
    graph = merged.graph
    randoms = [n for n in graph.nodes if is_random(n)]  # all, in order: so each draws what it drew before
    compiled = torch.compile if options.compile else lambda function: function
    return LinearProgram(
        extract(graph, merged.primals, [*merged.values, *residuals, *randoms]),
        compiled(extract(graph, [*merged.tangents, *residuals], merged.jvp)),
        compiled(extract(graph, [*merged.cotangents, *residuals], merged.vjp)),
        extract(graph, [*merged.directions, *residuals], merged.hvp),
        len(residuals),
    )


class Linearization:
    """J v, Jᵀu and H w at one point, by a program. The point's graph is not needed."""

    needs_graph = False

    def __init__(self, program: LinearProgram, point: Point) -> None:
        self._program = program
        self._point = point
        self._versions = [p._version for p in point.leaves]
        self._slopes: Tensors = []
        self._residuals: Tensors | None = None
        self._constants()

    @property
    def slopes(self) -> Tensors:
        """∂loss/∂outputs, shaped like the outputs."""
        self._constants()
        return self._slopes

    def release(self) -> None:
        """Let go of the residuals; the next product runs the primal part again."""
        self._residuals = None

    def _constants(self) -> Tensors:
        """Run the primal part unless its results are at hand, and check that it computes what the closure did."""
        if [p._version for p in self._point.leaves] != self._versions:
            raise StaleOperatorError("the parameters have changed since this operator was made; make a new one")
        if self._residuals is None:
            inputs = [tensor for tensor, _ in self._point.program.inputs]
            with self._point.repeat.draws(), torch.no_grad():
                results = self._program.primal(*map(_detached, self._point.leaves), *map(_detached, inputs))
            z = len(self._point.outputs)
            outputs, self._slopes, self._residuals, _ = _cut(results, [z, z, self._program.residuals, None])
            try:
                self._hold_outputs(outputs)
            except Exception:
                self._residuals = None
                raise
        return self._residuals

    def _hold_outputs(self, outputs: Tensors) -> None:
        """Check that the outputs are the closure's, and make the slopes those at the closure's.

        Where outputs are small sums of large terms (residuals of an equation, near its solution), two ways to compute
        them differ by the rounding of the terms, whose size ‖Jθ‖ tells: much more than their own rounding.
        """
        point = self._point
        off, size = difference_and_norm(outputs, point.outputs)
        if off > rounding(point) * size:
            terms = norm(self.jvp([q.detach() for q in point.leaves]))
            check(point, "the outputs", outputs, point.outputs, cancelled=terms)
        if off > 0.0:
            drift = [mine - z.detach() for mine, z in zip(outputs, point.outputs, strict=True)]
            self._slopes = [s - Hd for s, Hd in zip(self._slopes, self.hvp(drift), strict=True)]

    def jvp(self, tangents: Tensors) -> Tensors:
        """J v, shaped like the outputs."""
        return self._run(self._program.jvp, tangents, self._point.outputs)

    def vjp(self, cotangents: Tensors) -> Tensors:
        """Jᵀu, shaped like the parameters."""
        return self._run(self._program.vjp, cotangents, self._point.leaves)

    def hvp(self, directions: Tensors) -> Tensors:
        """H w, shaped like the outputs."""
        return self._run(self._program.hvp, directions, self._point.outputs)

    def _run(self, part: Part, vectors: Tensors, like: Tensors) -> Tensors:
        with torch.no_grad():
            results = part(*vectors, *self._constants())
        return [torch.zeros_like(x) if r is None else r for r, x in zip(results, like, strict=True)]


def _made(function: Callable[..., object], point: Point, *vectors: Tensors) -> fx.Graph:
    """Trace `function(primals, inputs, *vectors)`."""
    args = (
        [q.detach() for q in point.leaves],
        [_detached(tensor) for tensor, _ in point.program.inputs],
        *([torch.zeros_like(v, requires_grad=False) for v in group] for group in vectors),
    )
    return traced(function, *args).graph


def _forward_mode(point: Point) -> Part:
    def jvp(primals: Tensors, inputs: Tensors, tangents: Tensors) -> list[Tensor | None]:
        with fw.dual_level():
            # With leaves like those of the reverse mode, so that both traces compute the same values.
            leaves = [p.detach().requires_grad_() for p in primals]
            duals = [fw.make_dual(p, t) for p, t in zip(leaves, tangents, strict=True)]
            _, *outputs = _replayed(point, duals, inputs, _resting)
            return [fw.unpack_dual(z).tangent for z in outputs]

    return jvp


def _reverse_mode(point: Point) -> Callable[..., Tensors]:
    def derivatives(primals: Tensors, inputs: Tensors, cotangents: Tensors, directions: Tensors) -> Tensors:
        leaves = [p.detach().requires_grad_() for p in primals]
        loss, *z = _replayed(point, leaves, inputs)
        slopes = partial_derivatives([loss], z, [torch.ones_like(loss)], create_graph=True)
        return [*z, *slopes, *partial_derivatives(slopes, z, directions), *pull_back(z, leaves, cotangents)]

    return derivatives


def _resting(tensor: Tensor) -> Tensor:
    """A constant with a zero tangent, which the derivatives of normalisations cannot do without."""
    return fw.make_dual(tensor, torch.zeros_like(tensor))


def _replayed(
    point: Point, parameters: Tensors, inputs: Tensors, beside_moving: Callable[[Tensor], Tensor] = lambda t: t
) -> Tensors:
    """Run the program on stand-ins; return its loss and outputs."""
    with torch.enable_grad():
        return replay(point.program, parameters, leaves_where_needed(point.program, inputs), beside_moving)


def _detached(tensor: Tensor) -> Tensor:
    return tensor.detach() if tensor.requires_grad else tensor


def _cut(items: Sequence[T], lengths: Sequence[int | None]) -> list[list[T]]:
    """Cut a sequence into lists of the given lengths; None takes the rest."""
    pieces, start = [], 0
    for length in lengths:
        stop = len(items) if length is None else start + length
        pieces.append(list(items[start:stop]))
        start = stop
    return pieces
