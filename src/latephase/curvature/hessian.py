"""Products with the Hessian of the loss (Pearlmutter 1994)."""

from __future__ import annotations

from torch import Tensor

from latephase.curvature.engines.gradient_graph import GradientGraph
from latephase.curvature.ladder import Choice, EngineAt, Ladder, Rung, Verdict
from latephase.curvature.math_kernels import evaluated_with_math_kernels
from latephase.curvature.operator import CurvatureOperator
from latephase.curvature.options import Options
from latephase.curvature.point import Point
from latephase.curvature.verify import COTANGENT, DIRECTION, check, check_hessian, inner


class Hessian(CurvatureOperator[GradientGraph]):
    """``C @ v`` for the Hessian C of the loss at a point.

    The gradient's graph is built once; a product differentiates it. The graph stays in memory.

    Raises:
        CurvatureError: If there is no way to form products.
    """

    @classmethod
    def ladder(cls) -> Ladder[GradientGraph]:
        """Double backward, with the kernels that the closure uses or with elementary ones."""
        return LADDER

    def _product(self, v: list[Tensor]) -> list[Tensor]:
        return self._engine.derivative(v)


def _check(engine: GradientGraph, point: Point, options: Options) -> Verdict:
    """A Hessian is symmetric, which a wrong second derivative has no reason to be."""
    u, v = point.random_direction(COTANGENT), point.random_direction(DIRECTION)
    Hu, Hv = engine.derivative(u), engine.derivative(v)
    scale = inner(Hu, Hu).sqrt() * inner(v, v).sqrt()
    check(point, "uᵀHv", [scale + inner(u, Hv)], [scale + inner(v, Hu)])
    check_hessian(point, engine.derivative)
    return Verdict()


def _check_again(engine: GradientGraph, point: Point, choice: Choice[GradientGraph]) -> None:
    """Nothing is remembered that could be stale: the graph is the point's own."""


def _double_backward(point: Point, options: Options) -> EngineAt[GradientGraph]:
    return GradientGraph


def _double_backward_with_math_kernels(point: Point, options: Options) -> EngineAt[GradientGraph]:
    return lambda point: GradientGraph(evaluated_with_math_kernels(point))


LADDER = Ladder(
    [
        Rung("double-backward", _double_backward),
        Rung("double-backward, math kernels", _double_backward_with_math_kernels),
    ],
    _check,
    _check_again,
)
