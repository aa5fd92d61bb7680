"""A least-squares problem of which everything is known, as a solver is given it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from latephase.parts import DampedProblem
from latephase.parts.solver import Factor


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@dataclass
class Residuals:
    """½‖r(θ + p)‖² for r = ρ + Rp + ½ Q(p, p), with Q quadratic, as a problem: everything about it is known."""

    M: int = 6
    P: int = 4
    seed: int = 0
    bent: float = 0.0
    shift: float | Tensor = 0.0
    damping: float | Tensor = 0.1
    each: int = 1
    asked: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.R, self.rho = draw(self.seed, self.M, self.P), draw(self.seed + 1, self.M)
        self.Q = self.bent * draw(self.seed + 2, self.M, self.P, self.P)

    def __call__(self, v: Tensor) -> Tensor:
        return self.R.T @ (self.R @ v) + self.shift * v

    def factor(self, choose: Callable[[int, int], float]) -> Factor | str:
        share = float(choose(self.M, self.M // self.each))
        count = self.each * math.ceil(share * (self.M // self.each))
        scale = math.sqrt(self.M / count)
        return Factor(scale * self.R[:count], self.rho[:count] / scale, self.shift)

    def change(self, p: Tensor) -> Tensor:
        return self.R @ p + 0.5 * torch.einsum("mpq,p,q->m", self.Q, p, p)

    def pulled_change(self, p: Tensor) -> Tensor:
        return self.R.T @ self.change(p) + self.shift * p

    def loss(self, p: Tensor) -> float:
        r = self.rho + self.change(p)
        self.asked.append(float(0.5 * r @ r))
        return self.asked[-1]

    def gradient(self, p: Tensor) -> tuple[float, Tensor]:
        r = self.rho + self.change(p)
        J = self.R + torch.einsum("mpq,p->mq", 0.5 * (self.Q + self.Q.mT), p)
        return float(0.5 * r @ r + 0.5 * self.shift * p @ p), J.T @ r + self.shift * p

    @property
    def problem(self) -> DampedProblem:
        b = -self.R.T @ self.rho
        loss_0 = float(0.5 * self.rho @ self.rho)
        return DampedProblem(
            self,
            b,
            self.damping,
            loss_0=loss_0,
            loss_at=self.loss,
            loss_model=loss_0,
            gradient_at=self.gradient,
        )
