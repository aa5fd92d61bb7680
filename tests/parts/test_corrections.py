"""Corrected steps: their equation, how many evaluations they take, and where they stop."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.comparison import property_test, seeds
from tests.parts.residuals import Residuals, draw
from torch import Tensor

from latephase.parts.corrections import Deviation, corrected


def of(residuals: Residuals, lam: float, asked: list[Tensor], most: int) -> tuple[Tensor, Tensor]:
    """The step of the linear model, and the corrected one."""
    A = residuals.R.T @ residuals.R + lam * torch.eye(residuals.P, dtype=torch.float64)

    def deviation(p: Tensor) -> Deviation:
        asked.append(p)
        return Deviation(residuals.change(p) - residuals.R @ p, lambda: residuals.loss(p))

    v = torch.linalg.solve(A, residuals.problem.b)
    return v, corrected(v, deviation, lambda e: torch.linalg.solve(A, residuals.R.T @ e), most=most)


@property_test
@given(seeds)
def test_in_the_limit_outputs_move_as_the_model_wants_them_to(seed: int):
    """Rᵀ(ρ + z(θ + p) − z(θ)) + λp = 0: with R fixed, p minimises the damped sum of squares of what really happens."""
    residuals = Residuals(M=6, P=6, seed=seed, bent=0.05)
    residuals.rho *= 0.1
    v, p = of(residuals, 0.5, [], most=200)
    left = residuals.R.T @ (residuals.rho + residuals.change(p)) + 0.5 * p
    before = residuals.R.T @ (residuals.rho + residuals.change(v)) + 0.5 * v
    assert float(left.norm()) <= 0.3 * float(before.norm())


@property_test
@given(seeds, st.integers(0, 6))
def test_it_takes_no_more_evaluations_than_corrections_and_two(seed: int, most: int):
    asked: list[Tensor] = []
    of(Residuals(seed=seed, bent=0.3), 0.5, asked, most)
    assert len(asked) <= most + (most > 1)


def test_without_corrections_it_is_the_linear_step() -> None:
    v, p = of(Residuals(bent=1.0), 0.5, [], most=0)
    assert p is v


@property_test
@given(seeds, st.integers(2, 10))
def test_more_corrections_are_never_worse(seed: int, most: int):
    residuals = Residuals(seed=seed, bent=0.5)
    (_, fewer), (_, more) = (of(residuals, 0.5, [], n) for n in (most - 1, most))
    assert residuals.loss(more) <= residuals.loss(fewer)


def test_a_bend_as_long_as_the_step_is_left_out() -> None:
    v, p = of(Residuals(bent=1e4), 0.5, [], most=1)
    assert torch.equal(p, v)


def test_the_second_order_comes_from_a_short_step() -> None:
    """Exact for a quadratic residual, whatever the length h of the short step."""
    residuals = Residuals(bent=0.01)
    v, p = of(residuals, 0.5, [], most=1)
    e = residuals.change(v) - residuals.R @ v
    A = residuals.R.T @ residuals.R + 0.5 * torch.eye(residuals.P, dtype=torch.float64)
    torch.testing.assert_close(p, v - torch.linalg.solve(A, residuals.R.T @ e), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_merit_that_is_no_number_ends_it(bad: float) -> None:
    v = draw(0, 3)
    asked: list[Tensor] = []

    def deviation(p: Tensor) -> Deviation:
        asked.append(p)
        return Deviation(0.1 * p, lambda: bad)

    assert torch.isfinite(corrected(v, deviation, lambda e: e, most=9)).all()
    assert len(asked) == 3
