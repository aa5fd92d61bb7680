"""Burgers' equation: uₜ + u uₓ = ν uₓₓ for x from −1 to 1, ν = 0.01/π, u = −sin πx at t = 0 and 0 on both edges.

A steep front forms at x = 0. The solution is the one of Cole and Hopf, a quotient of two integrals.
"""

import math

import numpy as np
import torch
from torch import Tensor

from latephase.study.problems.pinn import FRESH, Equation, Function, in_box, pinn, seeded
from latephase.study.problems.problem import Problem
from latephase.study.problems.tanh_network import Jet

NU = 0.01 / math.pi
COUNTS = 10_000, 50, 50
"""Training points inside, at t = 0 and on the edges (Raissi et al. 2019: 10,000, and 100 in all)."""

NODES = 200
"""Of the quadrature. With 50 fewer, u changes by less than 1e-14."""


def solution(points: Tensor) -> Tensor:
    """Return u at `points`, [N, 2], by Gauss–Hermite quadrature (Basdevant et al. 1986).

    u is the mean of −sin(πy) over y = x − √(4νt) z, where z has the density exp(−z²) · exp(−cos(πy) / 2πν), not
    normalised. The second factor is as large as e⁵⁰, so weights are handled by their logarithms.
    """
    z, weight = (torch.from_numpy(array).to(points) for array in np.polynomial.hermite.hermgauss(NODES))
    y = math.pi * (points[:, :1] - torch.sqrt(4 * NU * points[:, 1:]) * z)
    share = torch.softmax(weight.log() - torch.cos(y) / (2 * math.pi * NU), dim=1)
    return -(share * torch.sin(y)).sum(dim=1)


def residuals(points: Tensor, u: Jet, network: Function) -> tuple[Tensor, Tensor, Tensor]:
    """Return uₜ + u uₓ − ν uₓₓ, u + sin πx at t = 0, and u on the edges."""
    equation = u.slopes[1] + u.value * u.slopes[0] - u.second
    return equation, u.value + torch.sin(math.pi * points[:, 0]), u.value


def draw(inside: int) -> tuple[list[Tensor], Tensor]:
    """Return the points, drawn uniformly."""
    generator = seeded()
    low, high = (-1.0, 0.0), (1.0, 1.0)
    interior = in_box(inside, low, high, generator)
    initial = in_box(COUNTS[1], low, (1.0, 0.0), generator)
    edge = in_box(COUNTS[2], low, high, generator)
    edge[:, 0] = torch.where(torch.arange(COUNTS[2]) % 2 == 0, -1.0, 1.0)
    return [interior, initial, edge], in_box(FRESH, low, high, generator)


def burgers(width: int = 20, inside: int = COUNTS[0]) -> Problem:
    """Return the problem, with eight hidden layers of a width and so many points inside."""
    return pinn(
        "burgers",
        Equation((NU, 0.0), residuals, solution),
        [width] * 8,
        (inside, *COUNTS[1:]),
        lambda: draw(inside),
        source="Raissi et al. 2019 (arXiv 1711.10561); first phase: chosen here",
        lr=1e-3,
        epochs=5000,
    )


BURGERS = burgers()
