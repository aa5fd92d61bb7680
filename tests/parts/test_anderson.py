"""Anderson's acceleration beside GMRES by its definition, and when it ends."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.comparison import property_test, seeds
from tests.parts.residuals import draw
from torch import Tensor

from latephase.parts.anderson import SLOW, anderson


class Linear:
    """f(p) = b − Ap, whose values are kept."""

    def __init__(self, seed: int, P: int) -> None:
        self.A = draw(seed, P, P) + 3.0 * torch.eye(P, dtype=torch.float64)
        self.b = draw(seed + 1, P)
        self.seen: list[Tensor] = []

    def __call__(self, p: Tensor) -> Tensor:
        self.seen.append(p)
        return self.b - self.A @ p

    def least(self, k: int) -> float:
        """The smallest ‖b − Ap‖ over the Krylov space of k vectors."""
        K = torch.stack([torch.linalg.matrix_power(self.A, i) @ self.b for i in range(k)], dim=1)
        Q = torch.linalg.qr(K).Q
        AQ = self.A @ Q
        return float((self.b - AQ @ torch.linalg.lstsq(AQ, self.b.unsqueeze(1)).solution.squeeze(1)).norm())


@property_test
@given(seeds, st.integers(2, 6))
def test_for_a_linear_f_it_is_gmres(seed: int, P: int) -> None:
    """The k-th iterate is one plain step from the minimum over k − 1 vectors (Walker & Ni 2011, Theorem 2.2)."""
    f = Linear(seed, P)
    falls = iter(float(2.0 ** (-2 * n)) for n in range(100))
    anderson(f.b, f, lambda p: next(falls), most=4)
    eye = torch.eye(P, dtype=torch.float64)
    for k, p in enumerate(f.seen[1:], 1):
        if k > P or f.least(k - 1 or 1) < 1e-6:  # nothing is left to combine
            break
        found = float((f.b - f.A @ p).norm())
        inner = torch.linalg.norm(eye - f.A, 2) * f.least(k)
        assert found <= float(inner) * (1 + 1e-6) + 1e-9


def test_one_iteration_is_the_plain_step() -> None:
    f = Linear(0, 4)
    p, merit = anderson(f.b, f, lambda p: 7.0, most=1)
    assert torch.equal(p, f.b)
    assert merit == 7.0
    assert f.seen == []


@pytest.mark.parametrize(
    ("merits", "moves", "best"),
    [
        ([1.0, 2.0], 1, 0),  # it gets worse
        ([1.0, 0.9 * SLOW, 0.89 * SLOW], 2, 2),  # too slowly better
        ([1.0, math.nan], 1, 0),
        ([1.0, 0.5, 0.25, 0.125], 3, 3),  # as often as it may
    ],
)
def test_when_it_ends(merits: list[float], moves: int, best: int) -> None:
    f, asked = Linear(0, 6), []

    def merit(p: Tensor) -> float:
        asked.append(p)
        return merits[len(asked) - 1]

    p, least = anderson(f.b, f, merit, most=4)
    assert len(f.seen) == moves
    assert torch.equal(p, asked[best])
    assert least == merits[best]


def test_where_no_iterate_has_a_number_it_stays() -> None:
    f = Linear(0, 3)
    p, least = anderson(f.b, f, lambda p: math.nan, most=5)
    assert torch.equal(p, torch.zeros(3, dtype=torch.float64))
    assert least == math.inf


def test_the_depth_is_how_many_changes_are_combined() -> None:
    """With one of them it is another method from the third iterate on."""
    ends = []
    for depth in (1, 8):
        f, falls = Linear(3, 6), iter(2.0**-n for n in range(9))
        ends.append(anderson(f.b, f, lambda p: next(falls), most=4, depth=depth)[0])  # noqa: B023 — used at once
    assert not torch.allclose(ends[0], ends[1])
