"""The solver that chooses: direct where that is possible and pays, and it says why not."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.parts.residuals import Residuals

from latephase.parts import Auto, Direct, Krylov, QuasiNewton, Sampled


def test_it_factorises_where_that_pays() -> None:
    residuals = Residuals(bent=0.3)
    auto, direct = Auto()(residuals.problem), Direct()(residuals.problem)
    assert torch.equal(auto.steps[1], direct.steps[1])
    assert auto.method == direct.method == "direct, 4 × 4"


@pytest.mark.parametrize("each", [1, 3])
def test_else_it_takes_another_way_and_says_why(each: int) -> None:
    """Where each sample has one residual it is a sample of them, else L-BFGS in the metric of a small space."""
    residuals = Residuals(bent=0.3, M=9, P=7, each=each)
    other = (Sampled() if each == 1 else QuasiNewton())(residuals.problem)
    for direct in (Direct(largest=3), Direct(gradients=0.02)):
        auto = Auto(direct=direct)(residuals.problem)
        assert auto.method == f"{other.method}, as a direct solve is not possible (too many rows)"
        assert auto.steps.keys() == other.steps.keys()
        assert ("L-BFGS" in auto.method) == (each > 1)


def test_a_sample_takes_turns_with_gradients_as_all_rows_do() -> None:
    residuals = Residuals(bent=3.0, M=40, P=7)
    auto = Auto(direct=Direct(largest=3))
    path = auto(residuals.problem)
    assert path.memory is not None
    following = auto(replace(residuals.problem, memory=path.memory))
    assert following.method.startswith(f"{following.last} gradients of self-scaled Broyden")


def test_where_the_sample_does_not_work_either_it_is_the_krylov_solver(monkeypatch: pytest.MonkeyPatch) -> None:
    residuals = Residuals(bent=0.3, M=9, P=7)
    monkeypatch.setattr(Residuals, "pulled_change", lambda self, p: None)
    auto = Auto(direct=Direct(largest=3))(residuals.problem)
    krylov = Krylov()(residuals.problem)
    assert auto.method == f"{krylov.method}, as a direct solve is not possible (too many rows)"


def test_where_there_are_no_rows_at_all_it_is_the_general_way() -> None:
    residuals = Residuals(bent=0.3, M=9, P=7)
    residuals.factor = lambda choose: "batch normalisation"
    assert "L-BFGS, as a direct solve is not possible (batch normalisation)" in Auto()(residuals.problem).method


def test_what_a_factorisation_may_cost() -> None:
    """Ten classes of 1,297 images and 5,000 parameters: 625 gradients; one residual per point: fifteen."""
    assert not Direct(gradients=50.0).accepts(rows=12970, samples=1297, parameters=5000)
    assert Direct(gradients=50.0).accepts(rows=1800, samples=1800, parameters=1185)
    assert Direct(gradients=50.0).accepts(rows=1020, samples=1020, parameters=116_000)
    assert not Direct(gradients=50.0).accepts(rows=5000, samples=5000, parameters=10_000)
    assert not Direct().accepts(rows=10_000, samples=10_000, parameters=116_000)
