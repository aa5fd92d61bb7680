"""J v by differentiating u ↦ Jᵀu: no forward derivatives are needed, but the point's graph stays in memory."""

from __future__ import annotations

import torch
from torch import Tensor

from latephase.curvature.point import Point
from latephase.curvature.pull_back import partial_derivatives, pull_back


class DoubleBackward:
    """J v, Jᵀu and H w at one point, by its graph.

    Attributes:
        slopes: ∂loss/∂outputs, shaped like the outputs.
    """

    needs_graph = True

    def __init__(self, point: Point) -> None:
        self._leaves, self._outputs, self._as_left = point.leaves, point.outputs, point.evaluation.as_left
        one = torch.ones_like(point.loss)
        self._u = [torch.zeros_like(z, requires_grad=True) for z in self._outputs]
        with self._as_left():
            self.slopes = partial_derivatives([point.loss], self._outputs, [one], create_graph=True)
            self._JTu = pull_back(self._outputs, self._leaves, self._u, create_graph=True)

    def release(self) -> None:
        """Nothing to let go of: without its graph there is no product."""

    def jvp(self, tangents: list[Tensor]) -> list[Tensor]:
        """J v, shaped like the outputs."""
        with self._as_left():
            return pull_back(self._JTu, self._u, tangents)

    def vjp(self, cotangents: list[Tensor]) -> list[Tensor]:
        """Jᵀu, shaped like the parameters."""
        with self._as_left():
            return pull_back(self._outputs, self._leaves, cotangents)

    def hvp(self, directions: list[Tensor]) -> list[Tensor]:
        """H w, shaped like the outputs."""
        with self._as_left():
            return partial_derivatives(self.slopes, self._outputs, directions)
