"""Products with the generalised Gauss-Newton matrix JᵀHJ (Schraudolph 2002)."""

from __future__ import annotations

from collections.abc import Sequence
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
    agree_closely,
    check,
    check_loss_hessian,
    check_transposed,
    difference_and_norm,
    gain,
    inner,
    norm,
    rounding,
)
from latephase.outer_rows import Rows, stacked

# Products at a point that are held against the gradient; each waits for the device. After a warm start the first is of
# the last step's solution and the second of the residual, and one shows what the other is blind to.
HELD_PRODUCTS = 2

# Rows of a Jacobian that may be had by a backward pass each, where a program cannot be run for one sample alone.
ROW_BY_ROW = 100


class GGN(CurvatureOperator[Factors]):
    """`C @ v` for C = JᵀHJ: J the Jacobian of the outputs in θ, H the Hessian of the loss in the outputs.

    Several outputs count as independent variables of the loss, also where one was computed from another. All that
    depends on the point alone is computed once; a product runs no forward pass again.

    Args:
        point: Loss, outputs and graph.
        options: How products are computed.

    Attributes:
        outputs: How many numbers the outputs are.

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
            unknown = f", and they cannot be told from the loss: {point.taken}" if point.taken else ""
            raise ValueError(
                "the GGN needs the outputs that the loss was computed from, with their graph"
                f"{unknown}. Return (loss, outputs) from the closure, and compute the loss from these very tensors; "
                "or give the optimizer a function that returns them, HessianFree(outputs=...); "
                'curvature_opt="hessian" needs the loss alone'
            )
        if any(z._backward_hooks for z in point.outputs):
            raise CurvatureError(
                "an output has a gradient hook, so that it is not clear on which side of it the GGN's two factors "
                "meet; return what the hooked tensor was computed from, or register the hook further inside"
            )
        self.outputs = sum(z.numel() for z in point.outputs)
        self._closed_form = closed_form(point.loss_call, point.outputs[0].detach())
        super().__init__(point, options)
        self._held_in_full: Factors | None = None

    @classmethod
    def ladder(cls) -> Ladder[Factors]:
        """Linearisation, then double backward, each with the closure's own kernels before elementary ones."""
        return LADDER

    def _product(self, v: list[Tensor]) -> list[Tensor]:
        Jv = self._engine.jvp(v)
        HJv = self._hvp(Jv)
        Cv = self._engine.vjp(HJv)
        if self._products.laps < HELD_PRODUCTS:
            self._hold_against_gradient(v, Jv, HJv, Cv)
        return Cv

    def _hvp(self, w: list[Tensor]) -> list[Tensor]:
        return self._engine.hvp(w) if self._closed_form is None else [self._closed_form(w[0])]

    def roots(self) -> list[Roots]:
        """Return √H, batch by batch and block by block; see `factor.roots`."""
        self._surely(self._hold_in_full)  # there may be no product to hold against the gradient
        return roots(self._hvp, [z.detach() for z in self._point.outputs])

    def rows(self, found: list[Roots]) -> tuple[Rows, Tensor, int]:
        """Return R = √H J, shape (M, P), ρ of shape (M,) with Rᵀρ = g, and how many backward passes that took.

        Raises:
            NotBySampleError: If it cannot be computed sample by sample, and the rows are too many for one by one.
            OutOfMemoryError: If there is no memory for it.
        """
        probe, passes = self._point.random_direction(DIRECTION), max(root.blocks.shape[1] for root in found)
        Jv = self._engine.jvp(probe)
        try:
            pieces = [self._rows_of(root, probe, Jv) for root in found]
        except NotBySampleError:
            passes = sum(root.rows for root in found)
            if passes > ROW_BY_ROW:
                raise
            pieces = [self._row_by_row(root) for root in found]
        R = stacked(pieces)
        slopes = [slope.detach() for slope in self._engine.slopes]
        rho = torch.cat([root.solve(slopes) for root in found])
        return R.to(self._parameters.dtype), rho.to(self._parameters.dtype), passes

    def _row_by_row(self, root: Roots) -> Tensor:
        """The rows of one batch, each by a backward pass over the whole."""
        found, cotangents = [], root.cotangents()
        for sample in range(len(root.blocks)):
            for k in range(root.blocks.shape[1]):
                u = [torch.zeros_like(z) for z in self._point.outputs]
                for place, given in zip(root.places, cotangents, strict=True):
                    there = sample if root.chosen is None else root.chosen[sample]
                    u[place][there] = given[sample, k].to(u[place])
                found.append(self._parameters.join(self._engine.vjp(u)))
        return torch.stack(found)

    def _rows_of(self, root: Roots, probe: list[Tensor], Jv: list[Tensor]) -> Rows:
        """The rows of one batch, seen to be right in one direction."""
        point = self._point
        try:
            R = rows(sampled(point, root.places), point.leaves, root.cotangents(), root.chosen)
            flat = torch.cat([v.reshape(-1) for v in probe])
            check(point, "√H J v", [R @ flat.to(R.dtype)], [root.times(Jv)])
        except (torch.OutOfMemoryError, NotBySampleError):
            raise
        except (RuntimeError, ValueError, TypeError, IndexError, NotImplementedError) as error:
            raise NotBySampleError(f"the outputs are no function of each sample alone ({said(error)})") from error
        return R

    def change(self, found: list[Roots], p: Tensor) -> Tensor:
        """Return √H (z(θ + p) − z(θ)) for p of shape (P,); shape (M,)."""
        change = self._change(p)
        return torch.cat([root.times(change) for root in found]).to(self._parameters.dtype)

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

    @property
    def _gradient(self) -> list[Tensor | None] | None:
        """What Jᵀ(∂loss/∂outputs) must be, as reverse differentiation of the closure found it; None if unknown."""
        return None if Remark.PAST_OUTPUTS in self._choice.remarks else self._point.gradient_pieces

    def _hold_against_gradient(self, v: list[Tensor], Jv: list[Tensor], HJv: list[Tensor], Cv: list[Tensor]) -> None:
        """Hold a product against the gradient g without a pass over the network.

        ⟨∂loss/∂outputs, Jv⟩ is the loss's derivative along v, which is ⟨g, v⟩; and ⟨HJv, Jv⟩ is ⟨v, JᵀHJv⟩. In inner
        products rounding averages out, so these agree much more closely than vectors do. Where they do not, v may be
        orthogonal to g, or the engine wrong: then all entries of the gradient tell.
        """
        g, slopes, gain = self._gradient, self._engine.slopes, self._choice.gain
        if g is None:
            return
        point, tolerance = self._point, _tolerance(self._choice.options)
        forward, reverse = [inner(slopes, Jv), inner(HJv, Jv)], [inner(g, v), inner(Cv, v)]
        if agree_closely(point, forward, reverse, tolerance):
            return
        self._hold_in_full()
        sizes = norm(v) * (norm(g) + gain * norm(slopes)), norm(v) * gain * norm(HJv)
        for name, mine, theirs, size in zip(("the derivative along v", "vᵀCv"), forward, reverse, sizes, strict=True):
            check(point, name, [mine], [theirs], tolerance, cancelled=size)

    def _hold_in_full(self) -> None:
        """Hold Jᵀ(∂loss/∂outputs) against the gradient, for the price of a backward pass; once for an engine."""
        if self._gradient is None or self._engine.needs_graph or self._engine is self._held_in_full:
            return
        _check_slopes(self._engine, self._point, self._choice, self._gradient)
        self._held_in_full = self._engine

    def _details(self) -> str:
        by = "automatic differentiation" if self._closed_form is None else "closed form"
        taken = f"; as outputs counts {self._point.taken}" if self._point.taken else ""
        return f"; Hessian of the loss in the outputs by {by}{taken}"


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
    """Nothing if the gradient is Jᵀ(∂loss/∂outputs), as products will be held against it; else ask the graph."""
    past = Remark.PAST_OUTPUTS in choice.remarks
    if past and not engine.needs_graph and point.gradient_pieces is not None:
        _check_slopes(engine, point, choice, point.pull_back(engine.slopes))


def _check_slopes(engine: Factors, point: Point, choice: Choice[Factors], theirs: Sequence[Tensor | None]) -> None:
    cancelled = choice.gain * norm(engine.slopes)
    check(point, "Jᵀ∂loss/∂outputs", engine.vjp(engine.slopes), theirs, _tolerance(choice.options), cancelled)


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
