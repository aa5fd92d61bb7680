"""What an operator asks of whatever computes its products."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class StaleOperatorError(RuntimeError):
    """An operator of parameters that are no more."""


class Engine(Protocol):
    """Linear maps at one point.

    Attributes:
        needs_graph: Whether the point's graph must stay.
    """

    needs_graph: bool

    def release(self) -> None:
        """Let go of what can be computed again."""


class Factors(Engine, Protocol):
    """What a GGN is made of: the Jacobian J of the outputs, and the Hessian H of the loss in the outputs."""

    @property
    def slopes(self) -> list[Tensor]:
        """∂loss/∂outputs, shaped like the outputs."""

    def jvp(self, tangents: list[Tensor], /) -> list[Tensor]:
        """J v, shaped like the outputs."""

    def vjp(self, cotangents: list[Tensor], /) -> list[Tensor]:
        """Jᵀu, shaped like the parameters."""

    def hvp(self, directions: list[Tensor], /) -> list[Tensor]:
        """H w, shaped like the outputs."""
