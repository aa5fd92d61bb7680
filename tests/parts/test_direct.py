"""The direct solver: both spaces and all λ beside dense solves, the search for λ, and corrected steps."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.comparison import property_test, seeds
from tests.parts.residuals import Residuals, draw

from latephase import CGStop
from latephase.parts import Direct
from latephase.parts.solver import Factor, NoSolutionError
from latephase.parts.system import System


@property_test
@given(seeds, st.integers(1, 8), st.integers(1, 8), st.sampled_from([1e-6, 0.1, 10.0]), st.booleans())
def test_both_spaces_give_the_dense_solution(seed: int, M: int, P: int, damping: float, decayed: bool):
    R, rho = draw(seed, M, P), draw(seed + 1, M)
    g = R.T @ rho + (draw(seed + 2, P) if decayed else 0.0)
    shift = 0.3 if decayed else 0.0
    A = R.T @ R + (damping + shift) * torch.eye(P, dtype=torch.float64)
    for in_rows in (True, False):
        damped = System(Factor(R, rho, shift), g, in_rows=in_rows).damped(damping)
        torch.testing.assert_close(damped.step(), -torch.linalg.solve(A, g), rtol=1e-6, atol=1e-8)
        expected = torch.linalg.solve(A, R.T @ rho)
        torch.testing.assert_close(damped.of_rows(rho), expected, rtol=1e-6, atol=1e-8)


def test_row_space_keeps_its_precision_at_tiny_dampings():
    R, rho = draw(0, 3, 9), draw(1, 3)
    step = System(Factor(R, rho, 0.0), R.T @ rho, in_rows=True).damped(1e-14).step()
    torch.testing.assert_close(step, -torch.linalg.lstsq(R, rho.unsqueeze(1)).solution.squeeze(1), rtol=1e-9, atol=0.0)


def test_a_vector_of_dampings_is_solved_in_parameter_space():
    residuals = Residuals(M=3, P=8)
    damping = torch.linspace(0.1, 1.0, 8, dtype=torch.float64)
    residuals.damping = damping
    path = Direct(trials=1).__call__(residuals.problem)
    A = residuals.R.T @ residuals.R + damping.diag()
    torch.testing.assert_close(path.steps[1], torch.linalg.solve(A, residuals.problem.b))


def test_a_linear_residual_ends_at_the_minimum():
    """There the smallest λ is the best, and nothing is to correct."""
    residuals = Residuals()
    path = Direct(trials=20)(residuals.problem)
    solution = torch.linalg.lstsq(residuals.R, -residuals.rho.unsqueeze(1)).solution.squeeze(1)
    torch.testing.assert_close(path.steps[1], solution, rtol=1e-4, atol=1e-4)
    assert path.damping_factor <= 4.0**-5
    assert path.stop is CGStop.SOLVED


@property_test
@given(seeds)
def test_what_is_returned_is_the_best_that_was_tried(seed: int):
    residuals = Residuals(seed=seed, bent=1.0)
    path = Direct()(residuals.problem)
    if len(path.steps):
        assert path.losses[1] == min(residuals.asked) == residuals.loss(path.steps[1]) < residuals.problem.loss_0
    else:
        assert not min(residuals.asked) < residuals.problem.loss_0


def test_a_step_that_is_too_long_is_damped():
    residuals = Residuals(M=4, P=4, bent=3.0, damping=1e-8, seed=1)
    path = Direct()(residuals.problem)
    assert path.damping_factor >= 4.0
    assert math.log(path.damping_factor, 4.0) == pytest.approx(round(math.log(path.damping_factor, 4.0)))
    assert Direct(spacing=10.0)(residuals.problem).damping_factor in {10.0**k for k in range(1, 12)}


def test_each_correction_makes_the_error_of_a_quadratic_residual_one_order_smaller():
    """Without damping, r(v) is of second order in the problem's size, and one order higher with each correction."""
    errors = {}
    for corrections in (0, 1, 2):
        for size in (1e-2, 1e-3):
            residuals = Residuals(M=4, P=4, bent=0.1, damping=1e-13)
            residuals.rho = size * residuals.rho
            path = Direct(corrections=corrections, trials=1)(residuals.problem)
            errors[corrections, size] = path.losses[1] ** 0.5
    for corrections in (0, 1, 2):
        ratio = errors[corrections, 1e-2] / errors[corrections, 1e-3]
        assert ratio == pytest.approx(10.0 ** (2 + corrections), rel=0.3)


def test_corrections_lower_the_loss():
    """Residuals that bend: a step comes further with them."""
    ends = []
    for corrections in (0, 1, 10):
        residuals = Residuals(M=12, P=12, bent=0.05, seed=3)
        ends.append(Direct(corrections=corrections)(residuals.problem).losses[1])
    linear, accelerated, corrected = ends
    assert corrected < accelerated < linear


def test_a_corrected_step_has_the_slope_of_the_linear_model_s():
    residuals = Residuals(bent=0.5)
    path = Direct(trials=1)(residuals.problem)
    linear = Direct(trials=1, corrections=0)(residuals.problem).steps[1]
    assert path.slope == pytest.approx(-float(residuals.problem.b @ linear))


def test_where_there_are_too_many_rows_and_parameters_it_says_so():
    with pytest.raises(NoSolutionError, match="6 rows of 6 samples are more than the solver takes"):
        Direct(largest=3)(Residuals().problem)
    assert len(Direct(largest=4)(Residuals().problem).steps) == 1


def test_numbers_that_are_not_finite():
    residuals = Residuals()
    residuals.R[0, 0] = math.nan
    path = Direct()(residuals.problem)
    assert (len(path.steps), path.stop) == (0, CGStop.NON_FINITE)


@pytest.mark.parametrize(
    "settings", [{"spacing": 1.0}, {"trials": 0}, {"largest": -1}, {"corrections": -1}, {"spacing": math.inf}]
)
def test_bad_settings(settings: dict[str, Any]):
    with pytest.raises(ValueError, match=next(iter(settings))):
        Direct(**settings)


def test_bad_types():
    with pytest.raises(TypeError, match="corrections"):
        Direct(corrections=True)
