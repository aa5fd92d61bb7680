"""Products with the generalised Gauss-Newton matrix JᵀHJ (Schraudolph 2002)."""

from __future__ import annotations

import time
from functools import partial

import torch
from torch import Tensor

from latephase.curvature.double_backward import DoubleBackward
from latephase.curvature.ladder import Builder, Ladder, climb, math_kernels
from latephase.curvature.linearize import DEFAULT_OPTIONS, Linearization, Options, pull_back, trace
from latephase.curvature.loss_hessians import closed_form
from latephase.curvature.operator import CurvatureOperator
from latephase.curvature.point import Point, evaluate


class GGN(CurvatureOperator):
    """``C @ v`` for C = JᵀHJ: J the Jacobian of the outputs in θ, H the Hessian of the loss in the outputs.

    All that depends on the point alone is computed once; a product runs no forward pass again.

    Args:
        point: Loss, outputs and graph.
        options: How products are computed.

    Raises:
        ValueError: If there are no outputs with a graph, or the loss was not computed from them.
        CurvatureError: If there is no way to form products.
    """

    def __init__(self, point: Point, options: Options = DEFAULT_OPTIONS) -> None:
        if not point.outputs:
            raise ValueError(
                "the GGN needs the outputs that the loss was computed from, with their graph: return (loss, outputs) "
                'from the closure, and compute the loss from these very tensors; curvature_opt="hessian" needs the '
                "loss alone"
            )
        start = time.perf_counter()
        in_closed_form = closed_form(point.loss_call, point.outputs[0].detach())
        engine, choice = climb(LADDER, point, options)
        self._jvp, self._vjp = engine.jvp, engine.vjp
        self._loss_hessian = engine.hvp if in_closed_form is None else lambda w: [in_closed_form(w[0])]
        self._loss_hessian_by = "automatic differentiation" if in_closed_form is None else "closed form"
        super().__init__(point.parameters, engine, choice, time.perf_counter() - start)

    def _product(self, v: list[Tensor]) -> list[Tensor]:
        return self._vjp(self._loss_hessian(self._jvp(v)))

    def _details(self) -> str:
        return f"; Hessian of the loss in the outputs by {self._loss_hessian_by}"


def _check(engine: Linearization | DoubleBackward, point: Point, options: Options) -> None:
    """Hold an engine against reverse differentiation of the closure, as the gradient uses it."""
    tolerance = 0.0 if options.product_dtype is None else torch.finfo(options.product_dtype).eps ** 0.5
    if not engine.needs_graph:
        theirs = pull_back(point.outputs, point.leaves, engine.slopes)
        point.check("Jᵀu", engine.vjp(engine.slopes), theirs, tolerance)
    v = point.random_direction(seed=0)
    Jv = engine.jvp(v)
    # ⟨Jv, Jv⟩ = ⟨v, JᵀJv⟩ holds for the true J alone, as v is random and Jᵀ has just been checked.
    point.check("vᵀJᵀJv", [inner(Jv, Jv)], [inner(v, engine.vjp(Jv))], tolerance)


def inner(a: list[Tensor], b: list[Tensor]) -> Tensor:
    """Return ⟨a, b⟩ in float64."""
    return torch.stack([(x.double() * y.double()).sum() for x, y in zip(a, b, strict=True)]).sum()


def _linearize(point: Point, options: Options) -> Builder:
    return partial(Linearization, trace(point, options))


def _linearize_with_math_kernels(point: Point, options: Options) -> Builder:
    with math_kernels():
        return _linearize(point, options)


def _double_backward(point: Point, options: Options) -> Builder:
    return DoubleBackward


def _double_backward_with_math_kernels(point: Point, options: Options) -> Builder:
    return lambda point: DoubleBackward(evaluated_with_math_kernels(point))


def evaluated_with_math_kernels(point: Point) -> Point:
    """Run the closure of ``point`` again, with kernels that have all derivatives."""
    with math_kernels(), point.again():
        return evaluate(point.forward, point.parameters, point.again)


LADDER = Ladder(
    "GGN",
    {
        "linearize": _linearize,
        "linearize, math kernels": _linearize_with_math_kernels,
        "double-backward": _double_backward,
        "double-backward, math kernels": _double_backward_with_math_kernels,
    },
    _check,
)
