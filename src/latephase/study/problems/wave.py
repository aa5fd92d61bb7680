"""The wave equation: uₜₜ = 4 uₓₓ for x from 0 to 1, u = 0 on both edges, u = sin πx + ½ sin 5πx and uₜ = 0 at t = 0.

The solution is u = sin(πx) cos(2πt) + ½ sin(5πx) cos(10πt).
"""

import math

import torch
from torch import Tensor

from latephase.study.problems.pinn import Equation, Function, pinn
from latephase.study.problems.problem import Problem
from latephase.study.problems.space_time import EDGE, INITIAL, INSIDE, grid
from latephase.study.problems.tanh_network import Jet

BETA = 5.0


def solution(points: Tensor) -> Tensor:
    """Return u at `points`, [N, 2]."""
    x, t = math.pi * points[:, 0], 2 * math.pi * points[:, 1]
    return torch.sin(x) * torch.cos(t) + 0.5 * torch.sin(BETA * x) * torch.cos(BETA * t)


def residuals(points: Tensor, u: Jet, network: Function) -> tuple[Tensor, ...]:
    """Return uₜₜ − 4 uₓₓ, what u and uₜ are off at t = 0, and u on either edge."""
    return u.second, u.value - solution(points), u.slopes[1], u.value, u.value


def draw(inside: int) -> tuple[list[Tensor], Tensor]:
    """Return the points; those at t = 0 are of two kinds."""
    points = grid(0.0, 1.0, inside)
    return [points.inside, points.initial, points.initial, points.first, points.last], points.fresh


def wave(width: int = 200, inside: int = INSIDE) -> Problem:
    """Return the problem, with three hidden layers of a width and so many points inside."""
    return pinn(
        "wave",
        Equation((-4.0, 1.0), residuals, solution),
        [width] * 3,
        (inside, INITIAL, INITIAL, EDGE, EDGE),
        lambda: draw(inside),
        source="Rathore et al. 2024 (arXiv 2402.01868), Table 2",
        lr=1e-5,
        epochs=11_000,
    )


WAVE = wave()
