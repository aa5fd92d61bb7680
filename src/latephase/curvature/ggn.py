"""Products with the generalised Gauss-Newton matrix JᵀHJ (Schraudolph 2002)."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from latephase.curvature.engines.double_backward import DoubleBackward
from latephase.curvature.engines.engine import Factors
from latephase.curvature.engines.linearize import Linearization, trace
from latephase.curvature.factor import Roots, roots
from latephase.curvature.jacobian import NotBySampleError, outputs_at, rows, sampled
from latephase.curvature.ladder import Choice, CurvatureError, EngineAt, Ladder, Remark, Rung, Verdict, said
from latephase.curvature.loss_hessians import closed_form
from latephase.curvature.math_kernels import evaluated_with_math_kernels, math_kernels
from latephase.curvature.operator import CurvatureOperator
from latephase.curvature.options import DEFAULT_OPTIONS, Options
from latephase.curvature.point import Point
from latephase.curvature.verify import (
    COTANGENT,
    DIRECTION,
    check,
    check_loss_hessian,
    check_transposed,
    difference_and_norm,
    gain,
    inner,
    norm,
    rounding,
)


class GGN(CurvatureOperator[Factors]):
    """`C @ v` for C = JᵀHJ: J the Jacobian of the outputs in θ, H the Hessian of the loss in the outputs.

    Several outputs count as independent variables of the loss, also where one was computed from another. All that
    depends on the point alone is computed once; a product runs no forward pass again.

    Args:
        point: Loss, outputs and graph.
        options: How products are computed.

    Raises:
        ValueError: If there are no outputs with a graph, or the loss was not computed from them.
        CurvatureError: If there is no way to form products.

    Example:
        >>> from latephase.curvature import ggn
        >>> theta = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
        >>> def forward():
        ...     outputs = theta**2
        ...     return 0.5 * outputs.square().sum(), outputs
        >>> C = ggn(forward, [theta])  # J = diag(2θ), H = I
        >>> C @ torch.ones(2)
        tensor([ 4., 16.])
        >>> C.backend
        'linearize'
    """

    def __init__(self, point: Point, options: Options = DEFAULT_OPTIONS) -> None:
        if not point.outputs:
            raise ValueError(
                "the GGN needs the outputs that the loss was computed from, with their graph: return (loss, outputs) "
                'from the closure, and compute the loss from these very tensors; curvature_opt="hessian" needs the '
                "loss alone"
            )
        if any(z._backward_hooks for z in point.outputs):
            raise CurvatureError(
                "an output has a gradient hook, so that it is not clear on which side of it the GGN's two factors "
                "meet; return what the hooked tensor was computed from, or register the hook further inside"
            )
        self._closed_form = closed_form(point.loss_call, point.outputs[0].detach())
        super().__init__(point, options)

    @classmethod
    def ladder(cls) -> Ladder[Factors]:
        """Linearisation, then double backward, each with the closure's own kernels before elementary ones."""
        return LADDER

    def _product(self, v: list[Tensor]) -> list[Tensor]:
        Jv = self._engine.jvp(v)
        if not self._products.laps:
            self._hold_against_gradient(v, Jv)
        return self._engine.vjp(self._hvp(Jv))

    def _hvp(self, w: list[Tensor]) -> list[Tensor]:
        return self._engine.hvp(w) if self._closed_form is None else [self._closed_form(w[0])]

    def roots(self) -> Roots:
        """Return √H, block by block; see `factor.roots`."""
        return roots(self._hvp, [z.detach() for z in self._point.outputs])

    def rows(self, root: Roots) -> tuple[Tensor, Tensor]:
        """Return R = √H J, shape (M, P), and ρ of shape (M,) with Rᵀρ = g.

        Raises:
            NotBySampleError: If that cannot be computed sample by sample.
            OutOfMemoryError: If there is no memory for it.
        """
        point = self._point
        try:
            R = rows(sampled(point), point.leaves, root.cotangents())
            probe = point.random_direction(DIRECTION)
            expected = root.times(self._engine.jvp(probe))
            check(point, "√H J v", [R @ torch.cat([v.reshape(-1) for v in probe]).to(R.dtype)], [expected])
        except (torch.OutOfMemoryError, NotBySampleError):
            raise
        except (RuntimeError, ValueError, TypeError, IndexError, NotImplementedError) as error:
            raise NotBySampleError(f"the outputs are no function of each sample alone ({said(error)})") from error
        return R.to(self._parameters.dtype), root.solve(self._engine.slopes).to(self._parameters.dtype)

    def change(self, root: Roots, p: Tensor) -> Tensor:
        """Return √H (z(θ + p) − z(θ)) for p of shape (P,); shape (M,)."""
        return root.times(self._change(p)).to(self._parameters.dtype)

    @property
    def can_move(self) -> bool:
        """Whether the outputs at other parameters can be computed."""
        return self._point.program.unseen is None

    def pulled_change(self, p: Tensor) -> Tensor:
        """Return Jᵀ H (z(θ + p) − z(θ)) for p of shape (P,); shape (P,)."""
        return self._parameters.join(self._engine.vjp(self._hvp(self._change(p))))

    def _change(self, p: Tensor) -> list[Tensor]:
        step = self._parameters.split(p)
        there = outputs_at(self._point, [q.detach() + s for q, s in zip(self._point.leaves, step, strict=True)])
        return [after - z.detach() for after, z in zip(there, self._point.outputs, strict=True)]

    def _hold_against_gradient(self, v: list[Tensor], Jv: list[Tensor]) -> None:
        """At every point's first product: ⟨∂loss/∂outputs, Jv⟩ is the loss's derivative along v, which is ⟨g, v⟩."""
        g = self._point.gradient_pieces
        if g is None or Remark.PAST_OUTPUTS in self._choice.remarks:
            return
        size = norm(v) * (norm(g) + self._choice.gain * norm(self._engine.slopes))
        along = [inner(self._engine.slopes, Jv)], [inner(g, v)]
        check(self._point, "the derivative along v", *along, _tolerance(self._choice.options), cancelled=size)

    def _details(self) -> str:
        by = "automatic differentiation" if self._closed_form is None else "closed form"
        return f"; Hessian of the loss in the outputs by {by}"


def _check(engine: Factors, point: Point, options: Options) -> Verdict:
    """Hold an engine against reverse differentiation of the closure, as the gradient uses it."""
    theirs, typical = point.pull_back(engine.slopes), gain(point, engine.vjp)
    cancelled = typical * norm(engine.slopes)
    if not engine.needs_graph:
        check(point, "Jᵀu", engine.vjp(engine.slopes), theirs, _tolerance(options), cancelled)
    check_transposed(point, engine.jvp, engine.vjp, _tolerance(options))
    check_loss_hessian(point, engine.hvp)
    assert point.gradient_pieces is not None
    error, size = difference_and_norm(theirs, point.gradient_pieces)
    bends = any(bool(Hw.any()) for Hw in engine.hvp(point.random_outputs(COTANGENT)))
    moves = any(bool(slope.any()) for slope in engine.slopes)
    past = error > rounding(point) * (size + cancelled)
    return Verdict((Remark.PAST_OUTPUTS,) * past + (Remark.NO_CURVATURE,) * (moves and not bends), typical)


def _check_again(engine: Factors, point: Point, choice: Choice[Factors]) -> None:
    """Hold an engine of a remembered program against the gradient, which is computed afresh at every point."""
    if engine.needs_graph or point.gradient_pieces is None:
        return
    past = Remark.PAST_OUTPUTS in choice.remarks
    theirs = point.pull_back(engine.slopes) if past else point.gradient_pieces
    cancelled = choice.gain * norm(engine.slopes)
    check(point, "the gradient", engine.vjp(engine.slopes), theirs, _tolerance(choice.options), cancelled)


def _tolerance(options: Options) -> float:
    return 0.0 if options.product_dtype is None else torch.finfo(options.product_dtype).eps ** 0.5


def _linearize(point: Point, options: Options) -> EngineAt[Factors]:
    return partial(Linearization, trace(point, options))


def _linearize_with_math_kernels(point: Point, options: Options) -> EngineAt[Factors]:
    with math_kernels():
        return _linearize(point, options)


def _double_backward(point: Point, options: Options) -> EngineAt[Factors]:
    return DoubleBackward


def _double_backward_with_math_kernels(point: Point, options: Options) -> EngineAt[Factors]:
    return lambda point: DoubleBackward(evaluated_with_math_kernels(point))


LADDER = Ladder(
    [
        Rung("linearize", _linearize, narrows=True),
        Rung("linearize, math kernels", _linearize_with_math_kernels, narrows=True),
        Rung("double-backward", _double_backward),
        Rung("double-backward, math kernels", _double_backward_with_math_kernels),
    ],
    _check,
    _check_again,
)
