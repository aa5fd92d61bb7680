"""Products with the Hessian of the loss (Pearlmutter 1994)."""

from __future__ import annotations

import torch
from torch import Tensor

from latephase.curvature.ggn import evaluated_with_math_kernels
from latephase.curvature.ladder import Builder, Choice, Ladder, Rung, Verdict
from latephase.curvature.linearize import Options
from latephase.curvature.operator import CurvatureOperator
from latephase.curvature.point import Point
from latephase.curvature.pull_back import pull_back
from latephase.curvature.verify import COTANGENT, DIRECTION, check, check_hessian, inner


class Hessian(CurvatureOperator):
    """``C @ v`` for the Hessian C of the loss at a point.

    The gradient's graph is built once; a product differentiates it. The graph stays in memory.

    Raises:
        CurvatureError: If there is no way to form products.
    """

    def _product(self, v: list[Tensor]) -> list[Tensor]:
        return self._engine.derivative(v)


class GradientGraph:
    """The gradient at a point as a function with a graph."""

    needs_graph = True

    def __init__(self, point: Point) -> None:
        self._leaves, self._as_left = point.leaves, point.evaluation.as_left
        with self._as_left():
            self._grads = pull_back([point.loss], point.leaves, [torch.ones_like(point.loss)], create_graph=True)

    def release(self) -> None:
        """Nothing to let go of: without its graph there is no product."""

    def derivative(self, v: list[Tensor]) -> list[Tensor]:
        """The gradient's derivative along v: the Hessian times v."""
        with self._as_left():
            return pull_back(self._grads, self._leaves, v)


def _check(engine: GradientGraph, point: Point, options: Options) -> Verdict:
    """A Hessian is symmetric, which a wrong second derivative has no reason to be."""
    u, v = point.random_direction(COTANGENT), point.random_direction(DIRECTION)
    Hu, Hv = engine.derivative(u), engine.derivative(v)
    scale = inner(Hu, Hu).sqrt() * inner(v, v).sqrt()
    check(point, "uᵀHv", [scale + inner(u, Hv)], [scale + inner(v, Hu)])
    check_hessian(point, engine.derivative)
    return Verdict()


def _check_again(engine: GradientGraph, point: Point, choice: Choice) -> None:
    """Nothing is remembered that could be stale: the graph is the point's own."""


def _double_backward(point: Point, options: Options) -> Builder:
    return GradientGraph


def _double_backward_with_math_kernels(point: Point, options: Options) -> Builder:
    return lambda point: GradientGraph(evaluated_with_math_kernels(point))


Hessian.LADDER = Ladder(
    "Hessian",
    [
        Rung("double-backward", _double_backward),
        Rung("double-backward, math kernels", _double_backward_with_math_kernels),
    ],
    _check,
    _check_again,
)
