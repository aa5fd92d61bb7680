"""Products with the generalised Gauss-Newton matrix JᵀHJ (Schraudolph 2002)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from latephase.curvature.point import Point


class GGN:
    """``C @ v`` for C = JᵀHJ: J the Jacobian of the outputs in θ, H the Hessian of the loss in the outputs.

    J v comes from differentiating the linear map u ↦ Jᵀu ("double backward"), so the graph of one forward
    pass serves all products.

    Args:
        point: Loss, outputs and graph. The graph stays in memory for as long as the operator.

    Raises:
        ValueError: If there are no outputs with a graph, or the loss was not computed from them.
    """

    def __init__(self, point: Point) -> None:
        self._parameters = point.parameters
        self._leaves = point.leaves
        self._outputs = [z for z in pytree.tree_leaves(point.outputs) if isinstance(z, Tensor) and z.requires_grad]
        if not self._outputs:
            raise ValueError(
                "the GGN needs the outputs that the loss was computed from, with their graph: return (loss, outputs) "
                f"from the closure, not outputs = {type(point.outputs).__name__} without a graph; "
                'curvature_opt="hessian" needs the loss alone'
            )
        self._slopes = torch.autograd.grad(point.loss, self._outputs, create_graph=True, allow_unused=True)
        if all(slope is None for slope in self._slopes):
            raise ValueError("the loss was not computed from the outputs that the closure returned with it")
        self._u = [torch.zeros_like(z, requires_grad=True) for z in self._outputs]
        self._JTu = torch.autograd.grad(self._outputs, self._leaves, self._u, create_graph=True, allow_unused=True)

    def __matmul__(self, v: Tensor) -> Tensor:
        """Multiply a vector of shape (P,) or a matrix of shape (P, k)."""
        if v.dim() == 2:
            return torch.stack([self @ column for column in v.unbind(1)], dim=1)
        Jv = _pull_back(self._JTu, self._u, self._parameters.split(v))
        HJv = _pull_back(self._slopes, self._outputs, Jv)
        return self._parameters.join(_pull_back(self._outputs, self._leaves, HJv))


def _pull_back(
    values: list[Tensor] | tuple[Tensor | None, ...], inputs: list[Tensor], cotangents: list[Tensor]
) -> list[Tensor]:
    """Return ∂⟨values, cotangents⟩/∂inputs; values without a graph are constants."""
    pairs = [(x, c) for x, c in zip(values, cotangents, strict=True) if x is not None and x.requires_grad]
    if not pairs:
        return [torch.zeros_like(x) for x in inputs]
    tensors, weights = zip(*pairs, strict=True)
    grads = torch.autograd.grad(tensors, inputs, weights, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for x, g in zip(inputs, grads, strict=True)]
