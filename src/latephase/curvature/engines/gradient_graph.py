"""H v by differentiating the gradient once more (Pearlmutter 1994); the gradient's graph stays in memory."""

from __future__ import annotations

import torch
from torch import Tensor

from latephase.curvature.point import Point
from latephase.curvature.pull_back import pull_back


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
