"""What all curvature operators have in common: ``C @ v``, and an account of how it is computed."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from latephase.curvature.ladder import Choice, Engine
from latephase.parameters import Parameters


class CurvatureOperator(ABC):
    """A symmetric P×P matrix at one point, given by its products.

    Attributes:
        needs_graph: Whether the point's graph must stay; else it may be dropped before the first product.
    """

    def __init__(self, parameters: Parameters, engine: Engine, choice: Choice, setup_seconds: float) -> None:
        self._parameters = parameters
        self._engine = engine
        self._choice = choice
        self._setup_seconds = setup_seconds
        self._product_seconds: list[float] = []
        self.needs_graph = engine.needs_graph

    @property
    def backend(self) -> str:
        """The rung that computes products."""
        return self._choice.rung

    def explain(self) -> str:
        """Say which rung computes products, why those above it do not, and what set-up and products cost."""
        lines = [f"products by {self.backend}{self._details()}"]
        lines += [f"not by {rung}: {reason}" for rung, reason in self._choice.refusals.items()]
        lines.append(f"set-up {self._setup_seconds:.3g} s")
        if self._product_seconds:
            mean = sum(self._product_seconds) / len(self._product_seconds)
            lines.append(f"{len(self._product_seconds)} products, {mean:.3g} s each")
        return "\n".join(lines)

    def release(self) -> None:
        """Let go of what the next product can compute again."""
        self._engine.release()

    def __matmul__(self, v: Tensor) -> Tensor:
        """Multiply a vector of shape (P,) or a matrix of shape (P, k).

        Raises:
            ValueError: For another shape.
            RuntimeError: If the parameters have changed since the operator was made.
        """
        if v.dim() not in (1, 2) or v.shape[0] != self._parameters.numel:
            raise ValueError(
                f"v must have shape ({self._parameters.numel},) or ({self._parameters.numel}, k), not {tuple(v.shape)}"
            )
        if v.dim() == 2:
            return torch.stack([self @ column for column in v.unbind(1)], dim=1)
        start = time.perf_counter()
        product = self._parameters.join(self._product(self._parameters.split(v)))
        self._product_seconds.append(time.perf_counter() - start)
        return product

    @abstractmethod
    def _product(self, v: list[Tensor]) -> list[Tensor]:
        """Multiply a vector that is split into the parameters' shapes."""

    def _details(self) -> str:
        return ""
