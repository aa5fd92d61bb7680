"""A direct solve on a sample of the rows: it ends where a solve with all does, and says where it does not work."""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.comparison import property_test, seeds
from tests.parts.residuals import Residuals

from latephase import CGStop
from latephase.parts import Direct, Sampled
from latephase.parts.anderson import anderson
from latephase.parts.direct import in_gradients
from latephase.parts.solver import Factor, NoSolutionError
from latephase.parts.system import System

sampled_module = sys.modules["latephase.parts.sampled"]


def some(rows: int, residuals: Residuals, **settings: float) -> Sampled:
    """The solver that takes so many rows of these."""
    solver = Sampled(gradients=rows * min(rows, residuals.P) / (80.0 * residuals.M), **settings)  # type: ignore[arg-type]
    assert solver.rows(residuals.M, residuals.P) in (rows - 1, rows)
    return solver


@property_test
@given(seeds)
def test_with_all_rows_and_straight_outputs_it_is_the_direct_solver(seed: int) -> None:
    residuals = Residuals(seed=seed, M=9, P=5)
    sampled, direct = (solver(trials=1)(residuals.problem) for solver in (Sampled, Direct))
    torch.testing.assert_close(sampled.steps[1], direct.steps[1], rtol=1e-9, atol=1e-11)
    assert sampled.predicted == pytest.approx(direct.predicted)
    assert sampled.method.startswith("direct on 9 of 9 rows, ")


@pytest.mark.parametrize("damping", [0.3, torch.linspace(0.2, 0.5, 8, dtype=torch.float64)])
def test_from_some_rows_it_comes_to_what_all_of_them_want(damping: float | torch.Tensor) -> None:
    """Not to what the sample alone wants."""
    residuals = Residuals(M=40, P=8, damping=damping)
    direct = Direct(trials=1)(residuals.problem)
    alone = some(20, residuals, trials=1, iterations=1)(residuals.problem)
    sampled = some(20, residuals, trials=1)(residuals.problem)
    far, near = (float((path.steps[1] - direct.steps[1]).norm()) for path in (alone, sampled))
    assert near < 0.5 * far
    assert direct.losses[1] <= sampled.losses[1] < alone.losses[1]


def test_it_follows_the_curve_of_the_outputs() -> None:
    residuals = Residuals(M=9, P=5, bent=0.3, damping=1e-3)
    straight, bent = (Sampled(trials=1, iterations=n)(residuals.problem) for n in (1, 15))
    assert bent.losses[1] < straight.losses[1]
    corrected = Direct(trials=1)(residuals.problem)
    assert bent.losses[1] < 1.5 * corrected.losses[1]


def test_the_sample_is_as_large_as_its_price_allows() -> None:
    solver = Sampled(gradients=5.0)
    for samples, parameters in ((10_000, 116_000), (100_000, 900), (50, 10)):
        rows = solver.rows(samples, parameters)
        assert in_gradients(rows, samples, min(rows, parameters)) <= 5.0
        one_more = in_gradients(rows + 1, samples, min(rows + 1, parameters))
        assert rows in (solver.largest, min(rows, samples)) or one_more > 5.0
    assert Sampled(largest=70).rows(10_000, 116_000) == 70


def test_its_matrix_is_counted_and_its_rows_are_told() -> None:
    residuals = Residuals(M=40, P=8)
    path = some(20, residuals)(residuals.problem)
    rows = int(path.method.split()[2])
    assert path.method.startswith(f"direct on {rows} of 40 rows, ")
    assert path.matrices == pytest.approx(in_gradients(rows, 40, min(rows, 8)), rel=0.1)


@property_test
@given(seeds, st.integers(1, 6), st.booleans())
def test_the_spectrum_is_that_of_the_curvature(seed: int, M: int, in_rows: bool) -> None:
    residuals = Residuals(seed=seed, M=M, P=4)
    system = System(Factor(residuals.R, residuals.rho, 0.3), residuals.problem.b, in_rows=in_rows)
    expected = torch.linalg.svdvals(residuals.R).square()
    torch.testing.assert_close(system.spectrum().flip(0)[: len(expected)], expected)
    assert float(system.spectrum().sum()) == pytest.approx(float(expected.sum()))


def test_the_more_lambda_damps_the_fewer_rows_are_taken() -> None:
    """A pilot of an eighth, and what its dimension asks for, up to all that the price allows."""

    def rows(damping: float, **settings: float) -> int:
        residuals = Residuals(M=80, P=8, damping=damping)
        return int(some(40, residuals, trials=1, **settings)(residuals.problem).method.split()[2])

    assert rows(1e3) == 5
    assert 5 < rows(300.0) < rows(100.0) < rows(1.0) == 40
    assert rows(30.0, redundancy=4.0) < rows(30.0, redundancy=16.0)
    assert rows(1e5, redundancy=math.inf) == 40


def test_the_sample_grows_as_lambda_is_searched() -> None:
    residuals = Residuals(M=80, P=8, damping=1e3)
    searched = some(40, residuals, trials=8)(residuals.problem)
    assert searched.damping_factor is not None
    assert searched.damping_factor < 0.1
    assert searched.method.startswith("direct on 40 of 80 rows")


def test_both_samples_matrices_are_counted() -> None:
    residuals = Residuals(M=80, P=8, damping=1.0)
    path = some(40, residuals)(residuals.problem)
    assert path.matrices == pytest.approx(in_gradients(40, 80, 8) + in_gradients(5, 80, 5))


def test_bad_redundancy() -> None:
    with pytest.raises(ValueError, match=r"redundancy must be ≥ 1, not 0\.5"):
        Sampled(redundancy=0.5)


def test_lambda_is_searched_as_the_direct_solver_does() -> None:
    residuals = Residuals(M=9, P=5, damping=100.0)
    path = Sampled(spacing=3.0, trials=4)(residuals.problem)
    assert path.damping_factor == pytest.approx(3.0**-3)


def test_without_the_outputs_elsewhere_there_is_no_step(monkeypatch: pytest.MonkeyPatch) -> None:
    residuals = Residuals(M=9, P=5, bent=0.3)
    monkeypatch.setattr(Residuals, "pulled_change", lambda self, p: None)
    with pytest.raises(NoSolutionError, match="not known for all samples"):
        Sampled()(residuals.problem)


@pytest.mark.parametrize("shift", [0.0, torch.linspace(0.0, 1.0, 9, dtype=torch.float64)])
def test_where_parameters_differ_in_lambda_row_space_has_the_mean_and_the_equation_their_own(
    shift: float | torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Iterated to its end, where by itself it ends once the loss does not get lower."""

    def to_the_end(f: torch.Tensor, move: Callable, merit: Callable, *, most: int) -> tuple[torch.Tensor, float]:
        falling = itertools.count(start=0, step=-1)
        return anderson(f, move, lambda p: math.exp(next(falling)), most=9)

    residuals = Residuals(M=3, P=9, damping=torch.linspace(0.1, 1.0, 9, dtype=torch.float64), shift=shift)
    direct = Direct(trials=1)(residuals.problem)
    monkeypatch.setattr(sampled_module, "anderson", to_the_end)
    step = Sampled(largest=8, trials=1)(residuals.problem).steps[1]
    torch.testing.assert_close(step, direct.steps[1], rtol=1e-3, atol=1e-5)
    with pytest.raises(NoSolutionError, match="different λ or weight decay, and 9 are more"):
        Direct(largest=8)(residuals.problem)


def test_it_takes_no_preconditioner() -> None:
    with pytest.raises(NoSolutionError, match="no preconditioner"):
        Sampled()(replace(Residuals().problem, preconditioner=lambda v: v))


def test_numbers_that_are_not_finite_end_it() -> None:
    residuals = Residuals()
    residuals.R[0, 0] = math.nan
    path = Sampled()(residuals.problem)
    assert path.stop is CGStop.NON_FINITE
    assert not path.steps
