"""The solver that chooses: direct where that is possible and pays, and it says why not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from tests.parts.residuals import Residuals

from latephase.parts import Auto, Direct, Krylov, QuasiNewton, Sampled
from latephase.parts.solver import Factor

MANY = "as a direct solve is not possible"


def test_it_factorises_where_that_pays() -> None:
    residuals = Residuals(bent=0.3)
    auto, direct = Auto()(residuals.problem), Direct()(residuals.problem)
    assert torch.equal(auto.steps[1], direct.steps[1])
    assert auto.method == direct.method == "direct, 4 × 4"


@pytest.mark.parametrize("each", [1, 3])
def test_else_it_takes_another_way_and_says_why(each: int) -> None:
    """Where each sample has one residual it is a sample of them, else gradients alone."""
    residuals = Residuals(bent=0.3, M=9, P=7, each=each)
    other = (Sampled() if each == 1 else QuasiNewton())(residuals.problem)
    for direct in (Direct(largest=3), Direct(gradients=0.02)):
        auto = Auto(direct=direct)(residuals.problem)
        assert auto.method == f"{other.method}, {MANY} (9 rows of {9 // each} samples are more than the solver takes)"
        assert auto.steps.keys() == other.steps.keys()
        assert ("Broyden" in auto.method) == (each > 1)


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
    assert auto.method == f"{krylov.method}, {MANY} (9 rows of 9 samples are more than the solver takes)"


def test_where_there_are_no_rows_at_all_it_is_the_general_way() -> None:
    residuals = Residuals(bent=0.3, M=9, P=7)
    residuals.factor = lambda choose: "batch normalisation"
    assert "Broyden, as a direct solve is not possible (batch normalisation)" in Auto()(residuals.problem).method


def test_what_a_factorisation_may_cost() -> None:
    """Ten classes of 1,297 images and 5,000 parameters: 625 gradients; one residual per point: fifteen."""
    assert not Direct(gradients=50.0).accepts(rows=12970, samples=1297, size=5000)
    assert Direct(gradients=50.0).accepts(rows=1800, samples=1800, size=1185)
    assert Direct(gradients=50.0).accepts(rows=1020, samples=1020, size=1020)
    assert not Direct(gradients=50.0).accepts(rows=5000, samples=5000, size=5000)
    assert not Direct().accepts(rows=10_000, samples=10_000, size=10_000)


@pytest.mark.parametrize("name", ["shift", "damping"])
def test_a_number_for_each_parameter_is_seen_before_any_row_is_computed(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row space needs one number for all: with more, and too many parameters for a matrix, a sample does it."""
    made: list[int] = []
    factor = Residuals.factor

    def counted(residuals: Residuals, choose: Callable[[int, int], float]) -> Factor | str:
        found = factor(residuals, choose)
        made.append(0 if isinstance(found, str) else len(found.R))
        return found

    monkeypatch.setattr(Residuals, "factor", counted)
    residuals = Residuals(bent=0.3, M=9, P=17)
    setattr(residuals, name, torch.linspace(0.1, 1.0, 17, dtype=torch.float64))
    path = Auto(direct=Direct(largest=12), sampled=Sampled(gradients=0.001))(residuals.problem)
    assert path.method.startswith("direct on 1 of 9 rows")
    assert "parameters have different λ or weight decay, and 17 are more than the solver takes" in path.method
    assert set(made) == {1}
