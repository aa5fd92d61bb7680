"""L-BFGS in the metric of a Krylov space: metric and pairs beside dense matrices, where it goes, when it ends."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.comparison import property_test, seeds
from tests.parts.residuals import Residuals, draw

from latephase.parts import Krylov, QuasiNewton
from latephase.parts.krylov import lanczos
from latephase.parts.quasi_newton import Walk
from latephase.parts.solver import NoSolutionError
from latephase.parts.wolfe import Place

KRYLOV = Krylov(products=3, tolerance=1e-9, corrections=0)


@property_test
@given(seeds, st.integers(2, 10), st.integers(1, 6))
def test_the_metric_is_positive_and_exact_in_the_space(seed: int, P: int, k: int):
    R = draw(seed, P, P)
    A, b = R.T @ R, draw(seed + 1, P)
    space = lanczos(A.mv, b, most=k, enough=lambda T, beta: False)
    H = torch.stack([space.inverse(0.5, e) for e in torch.eye(P, dtype=torch.float64)])
    torch.testing.assert_close(H, H.T, rtol=1e-8, atol=1e-10)
    assert float(torch.linalg.eigvalsh(H)[0]) > 0.0
    y = space.V.T @ draw(seed + 2, len(space.V))
    torch.testing.assert_close(space.inverse(0.5, y), space.solve(0.5, space.V @ y), rtol=1e-8, atol=1e-10)


def test_the_direction_is_that_of_bfgs() -> None:
    """Beside the dense update H ← (I − ρsyᵀ)H(I − ρysᵀ) + ρssᵀ."""
    residuals = Residuals(M=9, P=5, bent=0.2)
    metric = torch.diag(torch.linspace(0.5, 2.0, 5, dtype=torch.float64))
    place = lambda p: Place(p, *residuals.gradient(p))  # noqa: E731
    walk = Walk(residuals.problem, place(0.1 * draw(3, 5)), metric.mv)
    for _ in range(4):
        walk.advance(place)
    H, eye = metric, torch.eye(5, dtype=torch.float64)
    for s, y, rho in walk._pairs:
        assert rho == pytest.approx(1.0 / float(s @ y))
        left = eye - rho * torch.outer(s, y)
        H = left @ H @ left.T + rho * torch.outer(s, s)
    assert len(walk._pairs) >= 4
    torch.testing.assert_close(walk._direction(), -H @ walk.here.g, rtol=1e-8, atol=1e-12)


@property_test
@given(seeds)
def test_it_is_never_worse_than_the_krylov_step(seed: int):
    residuals = Residuals(seed=seed, M=12, P=8, bent=0.3)
    krylov, more = KRYLOV(residuals.problem), QuasiNewton(krylov=KRYLOV)(residuals.problem)
    assert more.damping_factor == krylov.damping_factor
    for n, loss in more.losses.items():
        assert loss <= krylov.losses[n]
        assert loss == residuals.loss(more.steps[n])


def test_it_goes_much_further_where_the_space_is_small() -> None:
    residuals = Residuals(M=60, P=40)
    solution = torch.linalg.lstsq(residuals.R, -residuals.rho.unsqueeze(1)).solution.squeeze(1)
    best = residuals.loss(solution)
    losses = [solver(residuals.problem).losses[3] - best for solver in (KRYLOV, QuasiNewton(krylov=KRYLOV))]
    assert losses[1] < 0.2 * losses[0]


def test_the_metric_beyond_the_space_has_a_floor() -> None:
    """Where λ is tiny, so that the metric would leap along all that it does not know."""
    residuals = Residuals(M=60, P=40, damping=1e-10)
    krylov = replace(KRYLOV, trials=1)
    low, usual = (QuasiNewton(krylov=krylov, floor=f, most=8)(residuals.problem) for f in (1e-12, 0.03))
    assert low.losses[3] != usual.losses[3]


def test_it_takes_no_more_gradients_than_it_may() -> None:
    residuals = Residuals(M=60, P=40)
    asked = []
    problem = replace(residuals.problem, gradient_at=lambda p: asked.append(p) or residuals.gradient(p))
    path = QuasiNewton(krylov=KRYLOV, most=7)(problem)
    assert 7 <= len(asked) <= 7 + 12
    assert path.method.endswith(f"then {len(asked)} gradients of L-BFGS")


def test_it_ends_where_no_gradient_brings_more() -> None:
    residuals = Residuals(M=6, P=4)
    asked = []
    problem = replace(residuals.problem, gradient_at=lambda p: asked.append(p) or residuals.gradient(p))
    QuasiNewton(krylov=KRYLOV, most=200)(problem)
    assert len(asked) < 40


def test_what_only_the_model_batch_likes_is_not_taken() -> None:
    residuals = Residuals(M=12, P=8)
    krylov = KRYLOV(residuals.problem)
    near = krylov.steps[3]
    problem = replace(residuals.problem, loss_at=lambda p: float((p - near).norm()))
    path = QuasiNewton(krylov=replace(KRYLOV, trials=1))(problem)
    assert path.method == "Krylov space of 3 vectors"


def test_a_gradient_of_the_callers_own_is_refused() -> None:
    problem = replace(Residuals().problem, gradient_at=lambda p: None)
    with pytest.raises(NoSolutionError, match="the caller's own"):
        QuasiNewton()(problem)


@pytest.mark.parametrize("settings", [{"most": 0}, {"floor": 0.0}])
def test_bad_settings(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        QuasiNewton(**settings)
