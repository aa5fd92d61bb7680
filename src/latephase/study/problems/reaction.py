"""The reaction equation: uₜ = ρ u (1 − u) for x from 0 to 2π, periodic, with a bell h(x) at t = 0.

The solution is u = h eᵖᵗ / (h eᵖᵗ + 1 − h), where p is ρ.
"""

import math

import torch
from torch import Tensor

from latephase.study.problems.pinn import Equation, Function
from latephase.study.problems.problem import Problem
from latephase.study.problems.space_time import INSIDE, periodic
from latephase.study.problems.tanh_network import Jet

RHO = 5.0


def bell(points: Tensor) -> Tensor:
    """Return h at `points`, [N, 2]: a normal density's shape around π, standard deviation π/4."""
    return torch.exp(-0.5 * ((points[:, 0] - math.pi) / (math.pi / 4)).square())


def solution(points: Tensor) -> Tensor:
    """Return u at `points`, [N, 2]."""
    grown = bell(points) * torch.exp(RHO * points[:, 1])
    return grown / (grown + 1 - bell(points))


def residuals(points: Tensor, u: Jet, network: Function) -> tuple[Tensor, Tensor, Tensor]:
    """Return uₜ − ρ u (1 − u), u − h at t = 0, and u(0, t) − u(2π, t)."""
    period = points.new_tensor([2 * math.pi, 0.0])
    grows = RHO * u.value * (1 - u.value)
    return u.slopes[1] - grows, u.value - bell(points), u.value - network(points + period)


def reaction(width: int = 200, inside: int = INSIDE) -> Problem:
    """Return the problem, with three hidden layers of a width and so many points inside."""
    return periodic("reaction", Equation((0.0, 0.0), residuals, solution), width, inside)


REACTION = reaction()
