"""Points of equations in one dimension and time: from a grid, as Rathore et al. 2024 (arXiv 2402.01868) take them."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from latephase.study.problems.pinn import FRESH, Equation, in_box, pinn, seeded
from latephase.study.problems.problem import Problem

INSIDE, INITIAL, EDGE = 10_000, 257, 101
"""Points in the interior, at t = 0 and on either edge (Rathore et al. 2024)."""


class SpaceTime(NamedTuple):
    """Points (x, t), rows of two numbers in float64.

    Attributes:
        inside: Neither at t = 0 nor on an edge.
        initial: At t = 0.
        first: On the edge with the smallest x.
        last: On the other.
        fresh: Anywhere, to test on.
    """

    inside: Tensor
    initial: Tensor
    first: Tensor
    last: Tensor
    fresh: Tensor


def grid(low: float, high: float, inside: int) -> SpaceTime:
    """Return points of the grid with 257 x and 101 t from 0 to 1, and `FRESH` others.

    Args:
        low: The first x.
        high: The last.
        inside: How many of the 25,500 inside are drawn.
    """
    generator = seeded()
    x = torch.linspace(low, high, INITIAL, dtype=torch.float64)
    t = torch.linspace(0.0, 1.0, EDGE, dtype=torch.float64)
    nodes = torch.cartesian_prod(x[1:-1], t[1:])
    chosen = nodes[torch.randperm(len(nodes), generator=generator)[:inside]]
    fresh = in_box(FRESH, (low, 0.0), (high, 1.0), generator)
    first, last = (torch.stack([torch.full_like(t, end), t], dim=1) for end in (low, high))
    return SpaceTime(chosen, torch.stack([x, torch.zeros_like(x)], dim=1), first, last, fresh)


def periodic(name: str, equation: Equation, width: int, inside: int) -> Problem:
    """Return a problem of Rathore et al. 2024 that is periodic in x from 0 to 2π.

    Args:
        name: What it is called.
        equation: Its residuals are those inside, at t = 0, and between the edges, given the points at x = 0.
        width: Of each of the three hidden layers.
        inside: Points inside.
    """

    def draw() -> tuple[list[Tensor], Tensor]:
        points = grid(0.0, 2 * math.pi, inside)
        return [points.inside, points.initial, points.first], points.fresh

    return pinn(
        name,
        equation,
        [width] * 3,
        (inside, INITIAL, EDGE),
        draw,
        source="Rathore et al. 2024 (arXiv 2402.01868), Table 2",
        lr=1e-4,
        epochs=11_000,
    )
