"""Changes of the problem that must not change the step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from latephase import HessianFree
from tests.cases import Case, case, each_case
from tests.comparison import assert_close, optimizer_property_test, seeds


def three_steps(problem: Case, seed: int, scale: float = 1.0, **options: Any) -> tuple[HessianFree, Tensor]:
    """Take three steps with the loss times `scale`; return the optimizer and the parameters."""
    model = problem.model(seed)
    opt = HessianFree(model.parameters(), cg_max_iter=6, **options)
    for number in range(3):
        opt.step(
            closure(problem, model, 20, seed + 2 * number, scale),
            evaluate=closure(problem, model, 12, seed + 2 * number + 1, scale),
        )
    return opt, parameters(model)


def closure(problem: Case, model: nn.Module, n: int, seed: int, scale: float) -> Callable[[], tuple[Tensor, Tensor]]:
    inputs, targets = problem.batch(n, seed)

    def forward() -> tuple[Tensor, Tensor]:
        outputs = model(inputs)
        return scale * problem.loss_func()(outputs, targets), outputs

    return forward


def parameters(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


@pytest.mark.parametrize("curvature_opt", ["ggn", "hessian"])
@each_case()
def test_the_unit_of_loss_and_damping(case: Case, curvature_opt: str):
    unit = 2.0**-7  # A power of two: every number of the step is scaled without rounding.
    before, theta = three_steps(case, 0, 1.0, damping=0.5, weight_decay=0.25, curvature_opt=curvature_opt)
    after, scaled = three_steps(
        case, 0, unit, damping=unit * 0.5, weight_decay=unit * 0.25, curvature_opt=curvature_opt
    )
    assert torch.equal(scaled, theta)
    assert after.last_step.next_damping == pytest.approx(unit * before.last_step.next_damping, rel=1e-12)
    assert after.last_step.loss_after == pytest.approx(unit * before.last_step.loss_after, rel=1e-12)
    for field in ("cg_iterations", "cg_stop", "cg_iterate", "step_size", "outcome"):
        assert getattr(after.last_step, field) == getattr(before.last_step, field)


@optimizer_property_test
@given(seeds, st.floats(1e-3, 1e3))
def test_any_unit_of_loss_and_damping(seed: int, unit: float):
    problem = case("mlp-mse")
    _, theta = three_steps(problem, seed, 1.0, damping=0.5)
    _, scaled = three_steps(problem, seed, unit, damping=unit * 0.5)
    assert_close(scaled, theta)


def test_another_damping_alone_changes_the_step():
    problem = case("mlp-mse")
    _, theta = three_steps(problem, 0, 1.0, damping=0.5)
    _, other = three_steps(problem, 0, 1.0, damping=1.0)
    assert float((theta - other).norm()) > 1e-3 * float(theta.norm())
