"""On linear least squares the quadratic model is the objective: one step from anywhere lands on the minimum."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from latephase import CGStop, HessianFree, Outcome
from tests.cases import Batch
from tests.comparison import assert_close, normal_vector, optimizer_property_test, seeds

TOLERANCE = 1e-8


class Problem:
    """Fit a linear layer with `features` inputs and `targets` outputs to N noisy samples.

    Args:
        n: Number of samples N.
        features: Number of inputs.
        targets: Number of outputs.
        spread: Ratio of the largest to the smallest standard deviation of the features.
        start: Size of the weights before the step.
        seed: Of samples and weights.
    """

    def __init__(
        self, n: int, features: int, targets: int, *, spread: float = 3.0, start: float = 1.0, seed: int = 0
    ) -> None:
        scales = torch.logspace(0.0, float(torch.tensor(spread).log10()), features, dtype=torch.float64)
        self.inputs = normal_vector(n * features, seed).view(n, features) * scales
        self.targets = normal_vector(n * targets, seed + 1).view(n, targets)
        self.model = nn.Linear(features, targets).double()
        with torch.no_grad():
            for number, p in enumerate(self.model.parameters()):
                p.copy_(start * normal_vector(p.numel(), seed + 2 + number).view(p.shape))

    def minimum(self, weight_decay: float = 0.0) -> Tensor:
        """The weights and biases of the minimum by a direct solution of the normal equations."""
        X = torch.cat([self.inputs, torch.ones(len(self.inputs), 1, dtype=torch.float64)], dim=1)
        # The mean over N · targets entries of the squared errors, and half the weight decay.
        scale = 2.0 / self.targets.numel()
        ridge = weight_decay * torch.eye(X.shape[1], dtype=torch.float64)
        solution = torch.linalg.solve(scale * X.T @ X + ridge, scale * X.T @ self.targets)
        return torch.cat([solution[:-1].T.reshape(-1), solution[-1]])

    def outputs(self, theta: Tensor) -> Tensor:
        """The outputs with these weights and biases."""
        targets, features = self.model.weight.shape
        weight, bias = theta.split([targets * features, targets])
        return nn.functional.linear(self.inputs, weight.view(targets, features), bias)

    def theta(self) -> Tensor:
        return torch.cat([p.detach().reshape(-1) for p in self.model.parameters()])

    def forward(self) -> tuple[Tensor, Tensor]:
        outputs = self.model(self.inputs)
        return nn.functional.mse_loss(outputs, self.targets), outputs

    def micro_batches(self, *sizes: int) -> list[Batch]:
        return list(zip(self.inputs.split(sizes), self.targets.split(sizes), strict=True))

    def optimizer(self, **options: Any) -> HessianFree:
        return HessianFree(self.model.parameters(), **{"damping": 0.0, **options})


def small(**options: Any) -> Problem:
    """8 parameters: fewer than the iterations that Martens' rule waits for."""
    return Problem(30, 3, 2, **options)


def large(**options: Any) -> Problem:
    """105 parameters, and a condition number of about 900."""
    return Problem(200, 20, 5, spread=30.0, **options)


# ---------------------------------------------------------------------- step


@optimizer_property_test
@given(seeds, st.sampled_from([0.0, 1e-3, 1.0, 1e3]), st.sampled_from(["ggn", "hessian"]))
def test_one_step_lands_on_the_minimum(seed: int, start: float, curvature_opt: str):
    problem = small(start=start, seed=seed)
    opt = problem.optimizer(curvature_opt=curvature_opt)
    loss = opt.step(problem.forward)
    assert_close(problem.theta(), problem.minimum(), TOLERANCE)
    assert loss == pytest.approx(problem.forward()[0].item(), rel=1e-12)


def test_the_step_is_accepted_as_it_is_and_the_model_was_right():
    problem = small()
    opt = problem.optimizer(lr=1.0)
    opt.step(problem.forward)
    assert opt.last_step.outcome is Outcome.ACCEPTED
    assert opt.last_step.step_size == 1.0
    assert opt.last_step.reduction_ratio == pytest.approx(1.0, rel=TOLERANCE)
    assert opt.last_step.next_damping == 0.0


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("curvature_opt", ["ggn", "hessian"])
def test_a_larger_problem_is_solved_without_martens_rule(seed: int, curvature_opt: str):
    problem = large(start=10.0, seed=seed)
    opt = problem.optimizer(curvature_opt=curvature_opt, martens_conv_crit=False)
    opt.step(problem.forward)
    assert_close(problem.theta(), problem.minimum(), TOLERANCE)


def test_martens_rule_stops_a_larger_problem_where_little_is_left_to_gain():
    problem = large(start=10.0)
    opt = problem.optimizer()
    opt.step(problem.forward)
    lowest = float(nn.functional.mse_loss(problem.outputs(problem.minimum()), problem.targets))
    assert opt.last_step.cg_stop is CGStop.RELATIVE_PROGRESS
    left, gained = opt.last_step.loss_after - lowest, opt.last_step.loss_before - opt.last_step.loss_after
    assert 1e-6 * gained < left < 1e-2 * gained


@pytest.mark.parametrize("weight_decay", [1e-3, 0.1, 10.0])
def test_weight_decay_moves_the_minimum(weight_decay: float):
    problem = small()
    problem.optimizer(weight_decay=weight_decay).step(problem.forward)
    assert_close(problem.theta(), problem.minimum(weight_decay), TOLERANCE)


def test_a_preconditioner_moves_nothing():
    problem = small(start=10.0)
    diagonal = normal_vector(8, 5).exp()
    problem.optimizer().step(problem.forward, M_func=lambda v: diagonal * v)
    assert_close(problem.theta(), problem.minimum(), TOLERANCE)


def test_gradient_and_curvature_may_be_brought_along():
    problem = small(start=10.0)
    model, x, y = problem.model, problem.inputs, problem.targets
    X = torch.cat([x, torch.ones(len(x), 1, dtype=torch.float64)], dim=1)
    scale = 2.0 / y.numel()

    def flat(W: Tensor) -> Tensor:
        return torch.cat([W[:-1].T.reshape(-1), W[-1]])

    def product(v: Tensor) -> Tensor:
        V = torch.cat([v[:6].view(2, 3).T, v[6:].unsqueeze(0)])
        return flat(scale * X.T @ (X @ V))

    grad = flat(scale * X.T @ (model(x) - y).detach())
    problem.optimizer().step(problem.forward, grad=grad, mvp=product)
    assert_close(problem.theta(), problem.minimum(), TOLERANCE)


def test_half_the_step_size_goes_half_the_way():
    problem = small()
    start = problem.theta()
    problem.optimizer(lr=0.5).step(problem.forward)
    assert_close(problem.theta(), (start + problem.minimum()) / 2, TOLERANCE)


# ---------------------------------------------------------------------- acc_step


@pytest.mark.parametrize("reduction", ["mean", "sum", "by-function"])
@pytest.mark.parametrize("micro_batches_in_memory", [1, 2, 4])
@pytest.mark.parametrize("size", [small, large])
def test_micro_batches_land_on_the_same_minimum(reduction: str, micro_batches_in_memory: int, size: Any):
    problem = size(start=10.0)
    opt = problem.optimizer(martens_conv_crit=size is small)
    loss = opt.acc_step(
        problem.model,
        nn.MSELoss(reduction="sum" if reduction == "sum" else "mean"),
        problem.micro_batches(4, 13, 1, len(problem.inputs) - 18),
        reduction=(lambda targets: 3.0 * len(targets)) if reduction == "by-function" else reduction,
        micro_batches_in_memory=micro_batches_in_memory,
    )
    assert_close(problem.theta(), problem.minimum(), TOLERANCE)
    unit = problem.targets.numel() if reduction == "sum" else 1.0
    assert loss == pytest.approx(unit * problem.forward()[0].item(), rel=1e-12)


def test_the_union_of_all_lists_is_used():
    # Gradient, curvature and evaluation on equal samples in three cuts.
    problem = small(start=10.0)
    problem.optimizer().acc_step(
        problem.model,
        nn.MSELoss(),
        problem.micro_batches(30),
        grad_datalist=problem.micro_batches(7, 23),
        mvp_datalist=problem.micro_batches(10, 10, 10),
    )
    assert_close(problem.theta(), problem.minimum(), TOLERANCE)
