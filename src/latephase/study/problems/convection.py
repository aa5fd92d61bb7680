"""The convection equation: uₜ + β uₓ = 0 for x from 0 to 2π, periodic, with u = sin x at t = 0.

The solution is u = sin(x − βt). With β = 40 physics-informed networks are known to fail (Krishnapriyan et al. 2021).
"""

import math

import torch
from torch import Tensor

from latephase.study.problems.pinn import Equation, Function
from latephase.study.problems.problem import Problem
from latephase.study.problems.space_time import INSIDE, periodic
from latephase.study.problems.tanh_network import Jet

BETA = 40.0


def solution(points: Tensor) -> Tensor:
    """Return u at `points`, [N, 2]."""
    return torch.sin(points[:, 0] - BETA * points[:, 1])


def residuals(points: Tensor, u: Jet, network: Function) -> tuple[Tensor, Tensor, Tensor]:
    """Return uₜ + β uₓ, u − sin x at t = 0, and u(0, t) − u(2π, t)."""
    period = points.new_tensor([2 * math.pi, 0.0])
    return u.slopes[1] + BETA * u.slopes[0], u.value - solution(points), u.value - network(points + period)


def convection(width: int = 200, inside: int = INSIDE) -> Problem:
    """Return the problem, with three hidden layers of a width and so many points inside."""
    return periodic("convection", Equation((0.0, 0.0), residuals, solution), width, inside)


CONVECTION = convection()
