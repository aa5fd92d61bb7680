"""The Krylov solver: every λ beside dense solves and converged conjugate gradients, corrections, and where it stops."""

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
from latephase.parts import CG, Direct, Krylov
from latephase.parts.krylov import lanczos
from latephase.parts.solver import NoSolutionError


def whole(seed: int, P: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A symmetric matrix with both signs, and a right-hand side."""
    A = draw(seed, P, P)
    return A + A.T, draw(seed + 1, P)


@property_test
@given(seeds, st.integers(1, 10), st.floats(0.0, 10.0))
def test_the_whole_space_solves_for_every_lambda(seed: int, P: int, extra: float):
    A, b = whole(seed, P)
    space = lanczos(A.mv, b, most=P, enough=lambda T, beta: False)
    lam = float(-torch.linalg.eigvalsh(A)[0].clamp(max=0.0)) + 1.0 + extra
    eye = torch.eye(P, dtype=torch.float64)
    torch.testing.assert_close(
        space.solve(lam, space.start), torch.linalg.solve(A + lam * eye, b), rtol=1e-8, atol=1e-8
    )


@property_test
@given(seeds, st.integers(2, 20), st.integers(1, 6))
def test_the_basis_is_orthonormal_and_projects_the_matrix(seed: int, P: int, k: int):
    A, b = whole(seed, P)
    space = lanczos(A.mv, b, most=k, enough=lambda T, beta: False)
    torch.testing.assert_close(space.V @ space.V.T, torch.eye(len(space.V), dtype=torch.float64), rtol=0.0, atol=1e-12)
    lam = 1e3
    projected = torch.linalg.solve(
        space.V @ A @ space.V.T + lam * torch.eye(len(space.V), dtype=torch.float64), space.start
    )
    torch.testing.assert_close(space.solve(lam, space.start), space.V.T @ projected, rtol=1e-8, atol=1e-12)


def test_no_product_is_made_for_another_lambda():
    residuals = Residuals(M=30, P=12, bent=0.1)
    products = []
    problem = residuals.problem
    curvature = type(residuals).__call__
    Residuals.__call__ = lambda self, v: products.append(v) or curvature(self, v)
    try:
        path = Krylov(products=7, tolerance=1e-9, corrections=0)(problem)
    finally:
        Residuals.__call__ = curvature
    assert len(products) == path.iterations == 7
    assert len(residuals.asked) >= 2


@property_test
@given(seeds)
def test_it_is_where_conjugate_gradients_are_after_as_many_iterations(seed: int):
    residuals = Residuals(seed=seed, M=20, P=15, damping=0.5)
    krylov = Krylov(products=6, tolerance=1e-9, corrections=0, trials=1)(residuals.problem)
    cg = CG(max_iter=6, martens=False)(residuals.problem)
    torch.testing.assert_close(krylov.steps[6], cg.steps[6], rtol=1e-7, atol=1e-9)
    assert krylov.predicted == pytest.approx(cg.predicted)


@property_test
@given(seeds, st.booleans())
def test_in_the_whole_space_it_is_the_direct_solver(seed: int, several: bool):
    """Corrections, too; and with a λ of its own for every parameter, where the space is scaled."""
    residuals = Residuals(seed=seed, M=9, P=5, bent=0.3)
    if several:
        residuals.damping = torch.linspace(0.1, 2.0, 5, dtype=torch.float64)
    krylov = Krylov(products=5, tolerance=1e-12, corrections=4)(residuals.problem)
    direct = Direct(corrections=4)(residuals.problem)
    assert krylov.damping_factor == direct.damping_factor
    for n, step in krylov.steps.items():
        torch.testing.assert_close(step, direct.steps[1], rtol=1e-6, atol=1e-8)
        assert krylov.losses[n] == pytest.approx(direct.losses[1])


@pytest.mark.parametrize("settings", [{"spacing": 3.0}, {"trials": 1}, {"corrections": 0}, {"corrections": 3}])
def test_what_it_shares_with_the_direct_solver_it_is_told_alike(settings: dict[str, float]) -> None:
    residuals = Residuals(M=9, P=5, bent=0.3)
    usual = Direct(corrections=1)(residuals.problem)
    both = {"corrections": 1, **settings}
    direct = Direct(**both)(residuals.problem)  # type: ignore[arg-type]
    krylov = Krylov(products=5, tolerance=1e-12, **both)(residuals.problem)  # type: ignore[arg-type]
    moved = float((direct.steps[1] - usual.steps[1]).norm()) > 1e-6
    assert moved or direct.damping_factor != usual.damping_factor
    assert krylov.damping_factor == direct.damping_factor
    torch.testing.assert_close(krylov.steps[5], direct.steps[1], rtol=1e-6, atol=1e-8)


def test_it_stops_where_the_space_is_large_enough():
    residuals = Residuals(M=60, P=40, damping=10.0)
    sizes = [Krylov(products=40, tolerance=t)(residuals.problem).iterations for t in (0.5, 0.1, 1e-3)]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1] < 40
    assert Krylov(products=2)(residuals.problem).stop is CGStop.MAX_ITERATIONS
    assert Krylov(products=40, tolerance=0.5)(residuals.problem).stop is CGStop.RELATIVE_PROGRESS


def test_a_space_that_is_invariant_ends():
    b = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    space = lanczos(lambda v: 2.0 * v, b, most=3, enough=lambda T, beta: False)
    assert len(space.V) == 1
    torch.testing.assert_close(space.solve(1.0, space.start), b / 3.0)


def test_it_is_damped_where_the_curvature_is_negative():
    A = torch.diag(torch.tensor([-3.0, 1.0, 2.0], dtype=torch.float64))
    space = lanczos(A.mv, torch.ones(3, dtype=torch.float64), most=3, enough=lambda T, beta: False)
    assert not space.positive(2.9)
    assert space.positive(3.1)


def test_numbers_that_are_not_finite():
    residuals = Residuals()
    residuals.R[0, 0] = math.nan
    path = Krylov()(residuals.problem)
    assert (len(path.steps), path.stop) == (0, CGStop.NON_FINITE)


def test_a_preconditioner_is_refused():
    problem = Residuals().problem
    with pytest.raises(NoSolutionError, match="preconditioner"):
        Krylov()(type(problem)(**{**vars(problem), "preconditioner": lambda v: v}))


@pytest.mark.parametrize("settings", [{"products": 0}, {"tolerance": 0.0}, {"tolerance": 1.5}, {"spacing": 1.0}])
def test_bad_settings(settings: dict[str, Any]):
    with pytest.raises(ValueError, match=next(iter(settings))):
        Krylov(**settings)
