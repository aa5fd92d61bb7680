"""Products with the generalised Gauss-Newton matrix JᵀHJ (Schraudolph 2002)."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from latephase.curvature.ladder import climb
from latephase.curvature.linearize import DEFAULT_OPTIONS, Options
from latephase.curvature.loss_hessians import closed_form
from latephase.curvature.point import Point


class GGN:
    """``C @ v`` for C = JᵀHJ: J the Jacobian of the outputs in θ, H the Hessian of the loss in the outputs.

    All that depends on the point alone is computed once; a product runs no forward pass again.

    Args:
        point: Loss, outputs and graph.
        options: How products are computed.

    Attributes:
        needs_graph: Whether the point's graph must stay; else it may be dropped before the first product.

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
        self._parameters = point.parameters
        loss_hessian = closed_form(point.loss_call, point.outputs[0].detach())
        self._engine, self._choice = climb(point, options)
        self.needs_graph = self._engine.needs_graph
        self._loss_name = "automatic differentiation" if loss_hessian is None else "closed form"
        self._loss_hessian = self._engine.hvp if loss_hessian is None else lambda w: [loss_hessian(w[0])]
        self._seconds = [time.perf_counter() - start]

    @property
    def backend(self) -> str:
        """The rung that computes products."""
        return self._choice.rung

    def explain(self) -> str:
        """Say which rung computes products, why those above it do not, and what set-up and products cost."""
        setup, *products = self._seconds
        lines = [f"products by {self.backend}; Hessian of the loss in the outputs by {self._loss_name}"]
        lines += [f"not by {rung}: {reason}" for rung, reason in self._choice.refusals.items()]
        lines.append(f"set-up {setup:.3g} s")
        if products:
            lines.append(f"{len(products)} products, {sum(products) / len(products):.3g} s each")
        return "\n".join(lines)

    def release(self) -> None:
        """Let go of what the next product can compute again."""
        self._engine.release()

    def __matmul__(self, v: Tensor) -> Tensor:
        """Multiply a vector of shape (P,) or a matrix of shape (P, k)."""
        if v.dim() == 2:
            return torch.stack([self @ column for column in v.unbind(1)], dim=1)
        start = time.perf_counter()
        Jv = self._engine.jvp(self._parameters.split(v))
        product = self._parameters.join(self._engine.vjp(self._loss_hessian(Jv)))
        self._seconds.append(time.perf_counter() - start)
        return product
