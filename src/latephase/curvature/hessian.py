"""Products with the Hessian of the loss (Pearlmutter 1994)."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from latephase.curvature.ggn import evaluated_with_math_kernels, inner
from latephase.curvature.ladder import Builder, Ladder, climb
from latephase.curvature.linearize import DEFAULT_OPTIONS, Options, pull_back
from latephase.curvature.operator import CurvatureOperator
from latephase.curvature.point import Point


class Hessian(CurvatureOperator):
    """``C @ v`` for the Hessian C of the loss at a point.

    The gradient's graph is built once; a product differentiates it. The graph stays in memory.

    Args:
        point: Loss and graph.

    Raises:
        CurvatureError: If there is no way to form products.
    """

    def __init__(self, point: Point) -> None:
        start = time.perf_counter()
        self._gradient, choice = climb(LADDER, point, DEFAULT_OPTIONS)
        super().__init__(point.parameters, self._gradient, choice, time.perf_counter() - start)

    def _product(self, v: list[Tensor]) -> list[Tensor]:
        return self._gradient.derivative(v)


class GradientGraph:
    """The gradient at a point as a function with a graph."""

    needs_graph = True

    def __init__(self, point: Point) -> None:
        self._leaves = point.leaves
        self._grads = pull_back([point.loss], point.leaves, [torch.ones_like(point.loss)], create_graph=True)

    def release(self) -> None:
        """Nothing to let go of: without its graph there is no product."""

    def derivative(self, v: list[Tensor]) -> list[Tensor]:
        """The gradient's derivative along v: the Hessian times v."""
        return pull_back(self._grads, self._leaves, v)


def _check(engine: GradientGraph, point: Point, options: Options) -> None:
    """A Hessian is symmetric, which a wrong second derivative has no reason to be."""
    u, v = point.random_direction(seed=0), point.random_direction(seed=1)
    Hu, Hv = engine.derivative(u), engine.derivative(v)
    scale = inner(Hu, Hu).sqrt() * inner(v, v).sqrt()
    point.check("uᵀHv", [scale + inner(u, Hv)], [scale + inner(v, Hu)])


def _double_backward(point: Point, options: Options) -> Builder:
    return GradientGraph


def _double_backward_with_math_kernels(point: Point, options: Options) -> Builder:
    return lambda point: GradientGraph(evaluated_with_math_kernels(point))


LADDER = Ladder(
    "Hessian",
    {
        "double-backward": _double_backward,
        "double-backward, math kernels": _double_backward_with_math_kernels,
    },
    _check,
)
