"""Trace a program once, and get from it linear maps that serve every later point of the same program.

Some operations of a trace depend on θ and the data alone, the others on a vector as well: J v by forward
differentiation, Jᵀu by reverse, H w in output space. Split accordingly, the *primal* part runs once per point, and its
results, the residuals, are constants of the *linear* parts. A product with the GGN is J v, H and Jᵀ, nothing more.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.autograd.forward_ad as fw
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from latephase.curvature import graph as g
from latephase.curvature.dispatch_state import unchanged_dispatch_state
from latephase.curvature.point import Point
from latephase.curvature.program import replay
from latephase.curvature.pull_back import partial_derivatives, pull_back
from latephase.curvature.verify import check

Tensors = list[Tensor]
Function = Callable[..., list[Any]]


class Options(NamedTuple):
    """How products are computed.

    Attributes:
        product_dtype: Type in which matrix products and convolutions work within a curvature product, such as
            ``torch.bfloat16``; None for the network's own. Everything else keeps its type.
        compile: Whether ``torch.compile`` compiles J v and Jᵀu: takes long at first use, pays on large problems.
    """

    product_dtype: torch.dtype | None = None
    compile: bool = False


DEFAULT_OPTIONS = Options()


class LinearProgram(NamedTuple):
    """A traced program, split. All its tensors are arguments: it serves every point and batch of its kind.

    Attributes:
        primal: (parameters, inputs) → outputs, slopes ∂loss/∂outputs, residuals.
        jvp: (tangents, residuals) → J v, shaped like the outputs.
        vjp: (cotangents in output space, residuals) → Jᵀu, shaped like the parameters; None where it is zero.
        hvp: (directions in output space, residuals) → H w, shaped like the outputs.
        residuals: How many residuals there are.
    """

    primal: Function
    jvp: Function
    vjp: Function
    hvp: Function
    residuals: int


def trace(point: Point, options: Options) -> LinearProgram:
    """Trace the program of ``point``. Nothing is computed: the tensors of a trace have shapes but no values.

    Raises:
        RuntimeError, NotImplementedError, TypeError: If it cannot be traced, or has no forward derivative.
    """
    if point.program.unseen is not None:
        raise RuntimeError(f"{point.program.unseen} cannot be run again from a record of torch functions")
    if any(p._backward_hooks for p in point.leaves):
        raise RuntimeError("a parameter has a gradient hook, which no trace contains")
    z = point.outputs
    reverse_mode = _made(_reverse_mode(point), point, z, z)
    forward_mode = _made(_forward_mode(point), point, point.leaves)
    merged = fx.Graph()
    parameters, inputs, tangents, cotangents, directions = (
        [g.placeholder(merged, f"{kind}_{i}", tensor) for i, tensor in enumerate(tensors)]
        for kind, tensors in {
            "parameter": point.leaves,
            "input": [tensor for tensor, _ in point.program.inputs],
            "tangent": point.leaves,
            "cotangent": z,
            "direction": z,
        }.items()
    )
    primals = [*parameters, *inputs]
    reverse = g.append(merged, reverse_mode, [*primals, *cotangents, *directions])
    outputs, slopes, hvp, vjp = _cut(reverse, [len(z), len(z), len(z), len(parameters)])
    jvp = g.append(merged, forward_mode, [*primals, *tangents])

    vectors = [*tangents, *cotangents, *directions]
    g.fold_scales(merged, vectors)
    if options.product_dtype is not None:
        g.lower_precision(merged, vectors, options.product_dtype)
    products = [*jvp, *vjp, *hvp]
    residuals = g.boundary(merged, vectors, products)
    if point.parameters.device.type == "cpu":
        residuals = g.lay_channels_last(merged, vectors, products, residuals)
    randoms = [n for n in merged.nodes if g.is_random(n)]  # all, in order: so each draws what it drew before
    compiled = torch.compile if options.compile else lambda function: function
    return LinearProgram(
        g.extract(merged, primals, [*outputs, *slopes, *residuals, *randoms]),
        compiled(g.extract(merged, [*tangents, *residuals], jvp)),
        compiled(g.extract(merged, [*cotangents, *residuals], vjp)),
        g.extract(merged, [*directions, *residuals], hvp),
        len(residuals),
    )


class StaleOperatorError(RuntimeError):
    """An operator of parameters that are no more."""


class Linearization:
    """J v, Jᵀu and H w at one point, by a program. The point's graph is not needed."""

    needs_graph = False

    def __init__(self, program: LinearProgram, point: Point) -> None:
        self._program = program
        self._point = point
        self._versions = [p._version for p in point.leaves]
        self._slopes: Tensors = []
        self._residuals: list[Any] | None = None
        self._constants()

    @property
    def slopes(self) -> Tensors:
        """∂loss/∂outputs, shaped like the outputs."""
        self._constants()
        return self._slopes

    def release(self) -> None:
        """Let go of the residuals; the next product runs the primal part again."""
        self._residuals = None

    def _constants(self) -> list[Any]:
        """Run the primal part unless its results are at hand, and check that it computes what the closure did."""
        if [p._version for p in self._point.leaves] != self._versions:
            raise StaleOperatorError("the parameters have changed since this operator was made; make a new one")
        if self._residuals is None:
            inputs = [tensor for tensor, _ in self._point.program.inputs]
            with self._point.repeat.draws(), torch.no_grad():
                results = self._program.primal(*map(_detached, self._point.leaves), *map(_detached, inputs))
            z = len(self._point.outputs)
            outputs, self._slopes, residuals, _ = _cut(results, [z, z, self._program.residuals, None])
            check(self._point, "the outputs", outputs, self._point.outputs)
            self._residuals = residuals
        return self._residuals

    def jvp(self, tangents: Tensors) -> Tensors:
        """J v, shaped like the outputs."""
        return self._run(self._program.jvp, tangents, self._point.outputs)

    def vjp(self, cotangents: Tensors) -> Tensors:
        """Jᵀu, shaped like the parameters."""
        return self._run(self._program.vjp, cotangents, self._point.leaves)

    def hvp(self, directions: Tensors) -> Tensors:
        """H w, shaped like the outputs."""
        return self._run(self._program.hvp, directions, self._point.outputs)

    def _run(self, part: Function, vectors: Tensors, like: Tensors) -> Tensors:
        with torch.no_grad():
            results = part(*vectors, *self._constants())
        return [torch.zeros_like(x) if r is None else r for r, x in zip(results, like, strict=True)]


def _made(function: Callable[..., Any], point: Point, *vectors: Tensors) -> fx.Graph:
    """Trace ``function(primals, inputs, *vectors)``, without values and without writes into arguments."""
    args = (
        [q.detach() for q in point.leaves],
        [_detached(tensor) for tensor, _ in point.program.inputs],
        *([torch.zeros_like(v, requires_grad=False) for v in group] for group in vectors),
    )
    with unchanged_dispatch_state(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the closure has to say, it has said; the rest is PyTorch to itself
        traced = make_fx(function, tracing_mode="fake")(*args)
        if not g.remove_writes(traced.graph):
            traced = make_fx(torch.func.functionalize(traced, remove="mutations"), tracing_mode="fake")(*args)
    return traced.graph


def _forward_mode(point: Point) -> Callable[..., Any]:
    def jvp(primals: Tensors, inputs: Tensors, tangents: Tensors) -> list[Tensor | None]:
        with fw.dual_level():
            # With leaves like those of the reverse mode, so that both traces compute the same values.
            leaves = [p.detach().requires_grad_() for p in primals]
            duals = [fw.make_dual(p, t) for p, t in zip(leaves, tangents, strict=True)]
            _, *outputs = _replayed(point, duals, inputs, _resting)
            return [fw.unpack_dual(z).tangent for z in outputs]

    return jvp


def _reverse_mode(point: Point) -> Callable[..., Any]:
    def derivatives(primals: Tensors, inputs: Tensors, cotangents: Tensors, directions: Tensors) -> list[Any]:
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
    stand_ins = [
        tensor.detach().requires_grad_() if requires_grad else tensor
        for tensor, (_, requires_grad) in zip(inputs, point.program.inputs, strict=True)
    ]
    with torch.enable_grad():
        return replay(point.program, parameters, stand_ins, beside_moving)


def _detached(tensor: Tensor) -> Tensor:
    return tensor.detach() if tensor.requires_grad else tensor


def _cut(items: Sequence[Any], lengths: Sequence[int | None]) -> list[list[Any]]:
    """Cut a sequence into lists of the given lengths; None takes the rest."""
    pieces, start = [], 0
    for length in lengths:
        stop = len(items) if length is None else start + length
        pieces.append(list(items[start:stop]))
        start = stop
    return pieces
