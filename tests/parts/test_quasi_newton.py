"""Gradients alone, and where they end a Krylov step: what is kept between, beside plain definitions."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.comparison import property_test, seeds
from tests.parts.residuals import Residuals, draw
from torch import Tensor

from latephase.parts import DampedProblem, Hybrid, Krylov, Memory, QuasiNewton, quasi_newton
from latephase.parts.krylov import lanczos
from latephase.parts.solver import NoSolutionError

KRYLOV = Krylov(products=3, tolerance=1e-9, corrections=0)


def on_other_data(problem: DampedProblem) -> DampedProblem:
    """With a loss on the model batch that is not the one by which steps are judged."""
    return replace(problem, loss_model=problem.loss_0 + 1.0)


@property_test
@given(seeds, st.integers(2, 10), st.integers(1, 6))
def test_the_metric_is_positive_and_exact_in_the_space(seed: int, P: int, k: int):
    R = draw(seed, P, P)
    A, b = R.T @ R, draw(seed + 1, P)
    space = lanczos(A.mv, b, most=k, enough=lambda T, beta: False)
    U, M, c = space.metric(0.5)
    H = U @ M @ U.T + c * torch.eye(P, dtype=torch.float64)
    torch.testing.assert_close(H, H.T, rtol=1e-8, atol=1e-10)
    assert float(torch.linalg.eigvalsh(H)[0]) > 0.0
    inside = space.V.T @ draw(seed + 2, len(space.V))
    torch.testing.assert_close(H @ inside, space.solve(0.5, space.V @ inside), rtol=1e-8, atol=1e-10)
    y = draw(seed + 3, P)
    beyond = y - space.V.T @ (space.V @ y)
    expected = beyond / (0.5 + max(float(space.eigenvalues[0]), 0.0))
    torch.testing.assert_close(H @ beyond, expected, rtol=1e-7, atol=1e-8)


def test_the_metric_of_scaled_parameters_is_a_multiple_of_the_identity():
    R, scale = draw(0, 5, 5), torch.linspace(0.5, 2.0, 5, dtype=torch.float64)
    space = lanczos((R.T @ R).mv, draw(1, 5), most=2, enough=lambda T, beta: False, scale=scale)
    U, M, c = space.metric(0.5)
    assert (U.shape, M.shape) == ((5, 0), (0, 0))
    assert c == pytest.approx(1.0 / (0.5 + float(space.eigenvalues[0])))


@pytest.mark.parametrize("most", [1, 7, 30])
def test_steps_are_gradients_alone(most: int) -> None:
    residuals, asked = Residuals(M=60, P=40), []

    class NoProducts(Residuals):
        def __call__(self, v: Tensor) -> Tensor:
            raise AssertionError

    problem = replace(
        residuals.problem,
        curvature=NoProducts(),
        gradient_at=lambda p: asked.append(p) or residuals.gradient(p),
    )
    path = QuasiNewton(most=most)(problem)
    assert most <= len(asked) <= most + 24
    assert path.method == f"{len(asked)} gradients of self-scaled Broyden"
    assert path.losses[path.last] == residuals.loss(path.steps[path.last]) < problem.loss_0


def test_what_is_kept_makes_of_several_steps_one() -> None:
    """As many gradients in steps of few come as far as in one, which those that forget do not."""
    residuals = Residuals(M=60, P=40)
    solution = torch.linalg.lstsq(residuals.R, -residuals.rho.unsqueeze(1)).solution.squeeze(1)
    least = residuals.loss(solution)

    def at(place: Tensor, memory: Memory | None) -> DampedProblem:
        loss, g = residuals.gradient(place)
        return replace(
            residuals.problem,
            b=-g,
            loss_0=loss,
            loss_model=loss,
            memory=memory,
            loss_at=lambda p: residuals.loss(place + p),
            gradient_at=lambda p: residuals.gradient(place + p),
        )

    def after(steps: int, most: int, remembers: bool) -> float:
        place, memory = torch.zeros(40, dtype=torch.float64), None
        for _ in range(steps):
            path = QuasiNewton(most=most)(at(place, memory))
            place, memory = place + path.steps[path.last], path.memory if remembers else None
        return residuals.loss(place) - least

    one, kept, forgotten = after(1, 36, True), after(12, 3, True), after(12, 3, False)
    assert kept < 10.0 * one
    assert forgotten > 100.0 * kept


@pytest.mark.parametrize(("kept", "columns"), [(4, 2), (11, 5), (400, 34)])
def test_no_more_is_kept_than_may_be(kept: int, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 17 moves two vectors each."""
    residuals = Residuals(M=60, P=40)
    assert QuasiNewton(most=20, kept=kept)(residuals.problem).memory.metric.shape == (40, columns)
    monkeypatch.setattr(quasi_newton, "NUMBERS", 40 * 6)
    assert QuasiNewton(most=20, kept=kept)(residuals.problem).memory.metric.shape[1] == min(kept, 6) // 2


def test_what_another_solver_remembered_is_not_its_own() -> None:
    residuals = Residuals(M=9, P=4, bent=3.0)
    fresh = QuasiNewton()(residuals.problem)
    foreign = Hybrid()(residuals.problem).memory
    assert foreign is not None
    path = QuasiNewton()(replace(residuals.problem, memory=foreign))
    assert torch.equal(path.steps[path.last], fresh.steps[fresh.last])


def test_where_gradients_bring_nothing_a_space_is_next() -> None:
    """And what follows begins with its curvature."""
    residuals = Residuals(M=60, P=40)
    against = torch.zeros(40, 1, dtype=torch.float64)
    against[:, 0] = residuals.problem.b / residuals.problem.b.norm()
    ascent = Memory(against, torch.tensor([1.0, 9.0, -2.0], dtype=torch.float64))  # a metric that points uphill
    path = QuasiNewton(krylov=KRYLOV, most=5)(replace(residuals.problem, memory=ascent))
    assert path.method.startswith("Krylov space of 3 vectors, then ")
    assert path.memory.metric.shape[1] >= 3 + 2
    krylov = KRYLOV(residuals.problem)
    assert path.losses[path.last] < krylov.losses[krylov.last]
    assert path.damping_factor == krylov.damping_factor


# ---------------------------------------------------------------------- judged on other data


@property_test
@given(seeds)
def test_it_is_never_worse_than_the_krylov_step(seed: int):
    residuals = Residuals(seed=seed, M=12, P=8, bent=0.3)
    problem = on_other_data(residuals.problem)
    krylov, more = KRYLOV(problem), QuasiNewton(krylov=KRYLOV)(problem)
    assert more.damping_factor == krylov.damping_factor
    assert more.memory is None
    for n, loss in more.losses.items():
        assert loss <= krylov.losses[n]
        assert loss == residuals.loss(more.steps[n])


def test_it_goes_much_further_where_the_space_is_small() -> None:
    residuals = Residuals(M=60, P=40)
    problem = on_other_data(residuals.problem)
    solution = torch.linalg.lstsq(residuals.R, -residuals.rho.unsqueeze(1)).solution.squeeze(1)
    best = residuals.loss(solution)
    losses = [solver(problem).losses[3] - best for solver in (KRYLOV, QuasiNewton(krylov=KRYLOV))]
    assert losses[1] < 0.2 * losses[0]


def test_the_metric_beyond_the_space_has_a_floor() -> None:
    """Where λ is tiny, so that the metric would leap along all that it does not know."""
    problem = on_other_data(Residuals(M=60, P=40, damping=1e-10).problem)
    krylov = replace(KRYLOV, trials=1)
    low, usual = (QuasiNewton(krylov=krylov, floor=f, most=8)(problem) for f in (1e-12, 0.03))
    assert low.losses[3] != usual.losses[3]


def test_it_takes_no_more_gradients_than_it_may() -> None:
    residuals = Residuals(M=60, P=40)
    asked = []
    problem = replace(residuals.problem, gradient_at=lambda p: asked.append(p) or residuals.gradient(p))
    path = QuasiNewton(krylov=KRYLOV, most=7)(on_other_data(problem))
    assert 7 <= len(asked) <= 7 + 12
    assert path.method.endswith(f"then {len(asked)} gradients of self-scaled Broyden")


def test_it_ends_where_no_gradient_brings_more() -> None:
    residuals = Residuals(M=6, P=4)
    asked = []
    problem = replace(residuals.problem, gradient_at=lambda p: asked.append(p) or residuals.gradient(p))
    QuasiNewton(krylov=KRYLOV, most=200)(on_other_data(problem))
    assert len(asked) < 40


def test_what_only_the_model_batch_likes_is_not_taken() -> None:
    residuals = Residuals(M=12, P=8)
    krylov = KRYLOV(residuals.problem)
    near = krylov.steps[3]
    problem = replace(on_other_data(residuals.problem), loss_at=lambda p: float((p - near).norm()))
    path = QuasiNewton(krylov=replace(KRYLOV, trials=1))(problem)
    assert path.method == "Krylov space of 3 vectors"


def test_a_gradient_of_the_callers_own_is_refused() -> None:
    problem = replace(Residuals().problem, gradient_at=lambda p: None, loss_model=math.nan)
    with pytest.raises(NoSolutionError, match="the caller's own"):
        QuasiNewton()(problem)


@pytest.mark.parametrize("settings", [{"most": 0}, {"kept": 0}, {"floor": 0.0}])
def test_bad_settings(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        QuasiNewton(**settings)
