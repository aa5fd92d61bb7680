"""Products with the Hessian of the loss."""

from __future__ import annotations

import torch
from torch import Tensor

from latephase.curvature.point import Point


class Hessian:
    """``C @ v`` for the Hessian C of the loss at a point (Pearlmutter 1994).

    The gradient's graph is built once; a product differentiates it.

    Args:
        point: Loss and graph. The graph stays in memory for as long as the operator.
    """

    needs_graph = True
    backend = "double-backward"

    def __init__(self, point: Point) -> None:
        point.refuse_reentrant_checkpoints()
        self._parameters = point.parameters
        self._leaves = point.leaves
        self._grads = torch.autograd.grad(point.loss, point.leaves, create_graph=True, allow_unused=True)

    def release(self) -> None:
        """Nothing to let go of: without its graph there is no product."""

    def __matmul__(self, v: Tensor) -> Tensor:
        """Multiply a vector of shape (P,) or a matrix of shape (P, k)."""
        if v.dim() == 2:
            return torch.stack([self @ column for column in v.unbind(1)], dim=1)
        pairs = [(g, d) for g, d in zip(self._grads, self._parameters.split(v), strict=True) if _has_graph(g)]
        if not pairs:
            return torch.zeros_like(v)
        grads, directions = zip(*pairs, strict=True)
        return self._parameters.join(
            torch.autograd.grad(grads, self._leaves, directions, retain_graph=True, allow_unused=True)
        )


def _has_graph(tensor: Tensor | None) -> bool:
    return tensor is not None and tensor.requires_grad
