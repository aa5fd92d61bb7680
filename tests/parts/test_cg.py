"""Conjugate gradients as a solver: what it passes on, where it starts, and which steps it proposes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from latephase import CGStop
from latephase.parts import CG, Backtracking, DampedProblem, Path

SIZE = 30


def matrix(seed: int = 0) -> Tensor:
    """Symmetric and positive definite, with a wide spectrum."""
    rotation, _ = torch.linalg.qr(torch.randn(SIZE, SIZE, generator=torch.Generator().manual_seed(seed)).double())
    return rotation @ torch.logspace(-3, 3, SIZE, dtype=torch.float64).diag() @ rotation.T


def problem(**fields: Any) -> DampedProblem:
    b = torch.randn(SIZE, generator=torch.Generator().manual_seed(1)).double()
    return DampedProblem(**{"curvature": matrix().mv, "b": b, "damping": 0.5, **fields})


def test_it_solves_the_damped_problem() -> None:
    for damping in (0.5, torch.linspace(0.1, 2.0, SIZE, dtype=torch.float64)):
        path = CG(max_iter=None, martens=False)(problem(damping=damping))
        A = matrix() + torch.diag(torch.as_tensor(damping, dtype=torch.float64).expand(SIZE))
        solution = torch.linalg.solve(A, problem().b)
        torch.testing.assert_close(path.steps[path.last], solution, rtol=1e-3, atol=1e-3)
        assert path.predicted == pytest.approx(float(-0.5 * problem().b @ solution), rel=1e-3)


def test_it_says_how_large_a_curvature_it_met() -> None:
    """Without λ: at most the largest eigenvalue, at least that along the gradient."""
    eigenvalues, vectors = torch.linalg.eigh(matrix())
    largest, b = float(eigenvalues[-1]), problem().b
    for damping in (0.5, torch.linspace(0.5, 0.5, SIZE, dtype=torch.float64)):
        path = CG(max_iter=None, martens=False)(problem(damping=damping))
        assert float(b @ matrix() @ b / (b @ b)) <= path.curvature * (1 + 1e-12)
        assert path.curvature <= largest * (1 + 1e-12)
        path = CG(max_iter=None, martens=False)(problem(b=vectors[:, -1], damping=damping))
        assert path.curvature == pytest.approx(largest, rel=1e-9)  # b is along it
    assert Path({}, 0.0).curvature == math.inf


def test_the_zero_iterate_of_a_cold_start_is_no_step() -> None:
    cold = CG(max_iter=5)(problem(wanted=Backtracking(gamma=2.0).wanted))
    assert list(cold.steps) == [1, 3, 5]
    assert not cold.warm_started
    solution = cold.steps[5]
    warm = CG(max_iter=5)(problem(wanted=Backtracking(gamma=2.0).wanted, last_solution=solution.clone()))
    assert list(warm.steps) == [0, 1, 3, 5]
    assert warm.warm_started
    assert torch.equal(warm.steps[0], 0.95 * solution)


@pytest.mark.parametrize("decay", [0.0, 0.5, 1.0])
def test_it_starts_from_a_share_of_the_last_solution(decay: float) -> None:
    solution = CG(max_iter=5)(problem()).steps[5]
    path = CG(max_iter=1, decay_x0=decay)(
        problem(wanted=Backtracking(gamma=2.0).wanted, last_solution=solution.clone())
    )
    assert path.warm_started is (decay > 0.0)
    if decay > 0.0:
        assert torch.equal(path.steps[0], decay * solution)


def test_a_preconditioner_is_used() -> None:
    inverse = torch.linalg.inv(matrix() + 0.5 * torch.eye(SIZE, dtype=torch.float64))
    assert CG()(problem(preconditioner=inverse.mv)).iterations <= 2 < CG()(problem()).iterations


def test_what_stops_it() -> None:
    assert CG(max_iter=3)(problem()).stop is CGStop.MAX_ITERATIONS
    assert CG()(problem()).stop is CGStop.RELATIVE_PROGRESS
    assert CG(martens=False, max_iter=10_000)(problem(damping=1e3)).stop is CGStop.SOLVED
    negative = problem(curvature=lambda v: -v, damping=0.0)
    assert CG()(negative).stop is CGStop.NON_POSITIVE_CURVATURE
    assert len(CG()(negative).steps) == 0
    assert len(CG(nonpositive="saddle-free")(negative).steps) == 1
    assert CG()(problem(curvature=lambda v: v * torch.nan)).stop is CGStop.NON_FINITE


def test_it_looks_at_the_numbers_of_a_waiting_device_more_rarely() -> None:
    products = []

    def counted(v: Tensor) -> Tensor:
        products.append(v)
        return matrix().mv(v)

    paths = [CG()(problem(curvature=counted, asynchronous=waits)) for waits in (False, True)]
    assert paths[0].iterations == paths[1].iterations
    assert paths[0].iterations < len(products) - paths[0].iterations <= paths[0].iterations + 4


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: CG(max_iter=0), ValueError, "max_iter of CG"),
        (lambda: CG(max_iter=2.5), TypeError, "cg_max_iter"),  # type: ignore[arg-type]
        (lambda: CG(decay_x0=1.5), ValueError, "decay_x0 of CG"),
        (lambda: CG(martens=1), TypeError, "martens of CG"),  # type: ignore[arg-type]
        (lambda: CG(nonpositive="abs"), ValueError, "'stop', 'saddle-free', 'ignore'"),
    ],
)
def test_bad_settings(make: Callable[[], CG], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        make()
