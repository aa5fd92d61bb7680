"""Poisson's equation on the unit square with networks of three sizes: −Δu = 2π² sin(πx) sin(πy), u = 0 on the edge.

Networks, points and loss are those of Dangel, Müller and Zeinhofer 2024 (arXiv 2405.15603). There, nothing came before
the optimizers compared; here, 1,000 steps of Adam do.
"""

import math
from collections.abc import Sequence
from functools import partial

from torch import Tensor

from latephase.study.problems.pinn import FRESH, Equation, Function, in_box, on_square, pinn, seeded
from latephase.study.problems.poisson_pinn import exact
from latephase.study.problems.problem import Problem
from latephase.study.problems.tanh_network import Jet

COUNTS = 900, 120
"""Training points inside and on the edge."""


def residuals(points: Tensor, u: Jet, network: Function) -> tuple[Tensor, Tensor]:
    """Return Δu + 2π² sin(πx) sin(πy), and u on the edge."""
    return u.second + 2 * math.pi**2 * exact(points), u.value


def draw(counts: tuple[int, int]) -> tuple[list[Tensor], Tensor]:
    """Return so many points inside and on the edge, drawn uniformly, and fresh ones."""
    generator = seeded()
    inside, edge = in_box(counts[0], (0.0, 0.0), (1.0, 1.0), generator), on_square(counts[1], generator)
    return [inside, edge], in_box(FRESH, (0.0, 0.0), (1.0, 1.0), generator)


def poisson_2d(name: str, hidden: Sequence[int], counts: tuple[int, int] = COUNTS) -> Problem:
    """Return the problem for hidden layers of these widths, and so many points inside and on the edge."""
    return pinn(
        name,
        Equation((1.0, 1.0), residuals, exact),
        hidden,
        counts,
        partial(draw, counts),
        source="Dangel et al. 2024 (arXiv 2405.15603); first phase: chosen here",
        lr=1e-3,
        epochs=1000,
        cpu_threads=1 if max(hidden) < 128 else None,
    )


POISSON_2D_257 = poisson_2d("poisson_2d_257", (64,))
POISSON_2D_10K = poisson_2d("poisson_2d_10k", (64, 64, 48, 48))
POISSON_2D_116K = poisson_2d("poisson_2d_116k", (256, 256, 128, 128))
