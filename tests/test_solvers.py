"""Every solver in a whole step: the ridge solution, micro-batches, resuming, endings, and what it cannot work on."""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from latephase import HessianFree, Outcome, StepRecord, StepUndoneWarning
from latephase.curvature import jacobian
from latephase.curvature.rewrite import outer_products
from latephase.outer_rows import OuterRows
from latephase.parts import SOLVERS, Direct, Sampled
from latephase.parts.solver import DampedProblem, NoSolutionError, Path
from latephase.parts.system import System
from tests.contract import Problem, batch, closure, differences, network, plain_network, values

BEYOND_THE_PAPER = [name for name in SOLVERS if name != "cg"]

GGN_MODULE = sys.modules["latephase.curvature.ggn"]  # the package's function of that name hides it


def plain(solver: object, **options: Any) -> Problem:
    return Problem(plain_network(), cg_max_iter=250, solver=solver, **options)


@pytest.mark.parametrize("solver", SOLVERS)
def test_ridge_regression_in_one_step(solver: str) -> None:
    """The objective is quadratic: λ goes down to where it does not matter, and weight decay is all that regularises."""
    model = nn.Linear(3, 2).double()
    x, y = batch(40, seed=1)
    opt = HessianFree(model.parameters(), solver=solver, weight_decay=0.3, damping=1e-6)
    for _ in range(3):
        opt.step(closure(model, (x, y)))
    ones = torch.cat([x, torch.ones(40, 1, dtype=torch.float64)], dim=1)
    ridge = torch.linalg.solve(ones.T @ ones / 40 + 0.3 * torch.eye(4, dtype=torch.float64), ones.T @ y / 40)
    torch.testing.assert_close(model.weight.detach(), ridge[:3].T, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model.bias.detach(), ridge[3], rtol=1e-4, atol=1e-4)


def test_of_a_linear_network_the_outputs_have_no_curve_with_weight_decay_either() -> None:
    """What a step does to the outputs, pulled back, is its product with the curvature: both have the weight decay."""
    model = nn.Linear(3, 2).double()
    found: list[Any] = []

    def solver(problem: DampedProblem) -> Path:
        p = torch.linspace(-1.0, 1.0, 8, dtype=torch.float64)
        found.extend((problem.curvature.pulled_change(p), problem.curvature(p)))
        return Path({}, 0.0)

    HessianFree(model.parameters(), solver=solver, weight_decay=0.3).step(closure(model, batch(40, seed=1)))
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("solver", BEYOND_THE_PAPER)
def test_micro_batches_take_the_step_of_their_union(solver: str) -> None:
    """A sample is drawn from each: the union's is the same only where all rows are in it."""
    every = Sampled(redundancy=math.inf) if solver == "sampled" else solver
    one, parts = plain(every, weight_decay=0.01), plain(every, weight_decay=0.01)
    inputs, targets = zip(*parts.gradient, strict=True)
    union = torch.cat(inputs), torch.cat(targets)
    for _ in range(2 if solver == "quasi-newton" else 3):  # after two of its steps nothing is left to descend
        one.opt.step(closure(one.model, union))
        parts.opt.acc_step(parts.model, mse_loss, parts.gradient, micro_batches_in_memory=3)
        assert one.opt.last_step.outcome is parts.opt.last_step.outcome is Outcome.ACCEPTED
    for p, q in zip(one.model.parameters(), parts.model.parameters(), strict=True):
        # Sums in another order, which sixty iterations of L-BFGS make larger.
        tolerance = 1e-6 if solver == "quasi-newton" else 1e-9
        torch.testing.assert_close(p, q, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("solver", BEYOND_THE_PAPER)
def test_ten_steps_are_five_and_a_resume_of_five_to_the_bit(solver: str) -> None:
    straight, halved = plain(solver), plain(solver)
    for _ in range(10):
        straight.step()
    for _ in range(5):
        halved.step()
    again = plain(solver)
    again.model.load_state_dict(copy.deepcopy(halved.model.state_dict()))
    again.opt.load_state_dict(copy.deepcopy(halved.opt.state_dict()))
    for _ in range(5):
        again.step()
    assert differences(values(straight.model, straight.opt), values(again.model, again.opt)) == []


@pytest.mark.parametrize("solver", ["direct", "krylov", "sampled", "auto"])
def test_its_losses_are_not_evaluated_twice_and_lambda_is_its_own(solver: str) -> None:
    problem = plain(solver, damping=1.0)
    calls = []
    evaluate = problem.evaluate
    where = lambda: torch.cat([p.detach().reshape(-1) for p in problem.model.parameters()])  # noqa: E731
    problem.step(evaluate=lambda: calls.append(where()) or evaluate())
    record = problem.opt.last_step
    assert record.outcome is Outcome.ACCEPTED
    assert len(calls) == len({tuple(theta.tolist()) for theta in calls}) >= 3  # θ, and one for each λ
    elsewhere = record.counts.losses + record.counts.gradients - 1  # what the outputs do is of the model batch
    assert len(calls) < elsewhere
    assert record.next_damping != 1.0
    assert record.next_damping in {4.0**k for k in range(-12, 12)}


@pytest.mark.parametrize("solver", BEYOND_THE_PAPER)
def test_a_step_that_meets_nan_leaves_nothing_behind(solver: str) -> None:
    problem = plain(solver)
    problem.step()
    before = problem.snapshot()
    with pytest.warns(StepUndoneWarning):
        problem.step(evaluate=lambda: problem.evaluate()[0] * torch.nan)
    assert differences(before, problem.snapshot()) == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"curvature_opt": "hessian"}, "Hessian of the loss is no product"),
        ({"solver": Direct(largest=2)}, "samples are more than the solver takes"),
    ],
)
def test_what_it_cannot_work_on(options: dict[str, Any], words: str) -> None:
    problem = plain(**{"solver": "direct", **options})
    before = problem.snapshot()
    with pytest.raises(NoSolutionError, match=words):
        problem.step()
    assert differences(before, problem.snapshot()) == []


def test_samples_that_influence_each_other_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GGN_MODULE, "ROW_BY_ROW", 0)  # few rows are had one by one
    problem = Problem(network(), cg_max_iter=250, solver="direct")  # BatchNorm in training mode
    with pytest.raises(NoSolutionError, match="each sample alone"):
        problem.step()
    problem.model.eval()
    problem.step()
    assert problem.opt.last_step.outcome is Outcome.ACCEPTED


@pytest.mark.parametrize("solver", ["direct", "auto"])
def test_few_samples_that_influence_each_other_are_solved_for_all_the_same(solver: str) -> None:
    problem = Problem(network(), cg_max_iter=250, solver=solver)
    problem.step()
    record = problem.opt.last_step
    assert record.outcome is Outcome.ACCEPTED
    assert record.solver.startswith("direct")
    assert record.counts.products > 10  # a backward pass for each of the rows


def test_products_of_the_callers_own_have_no_factors() -> None:
    problem = plain("direct")
    with pytest.raises(NoSolutionError, match="the caller's own"):
        problem.step(mvp=lambda v: v)


def test_micro_batches_must_be_in_memory() -> None:
    problem = plain("direct")
    with pytest.raises(NoSolutionError, match="micro_batches_in_memory"):
        problem.acc_step()
    problem.acc_step(micro_batches_in_memory=2)
    assert problem.opt.last_step.outcome is Outcome.ACCEPTED


def test_dropout_is_refused_in_training_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sample by itself would draw another mask than in its batch."""
    monkeypatch.setattr(GGN_MODULE, "ROW_BY_ROW", 0)  # few rows are had one by one, with the batch's mask
    model = nn.Sequential(nn.Linear(3, 20), nn.Tanh(), nn.Dropout(0.5), nn.Linear(20, 2)).double()
    opt = HessianFree(model.parameters(), solver="direct")
    with pytest.raises(NoSolutionError, match="random"):
        opt.step(closure(model, batch(30, seed=1)))
    model.eval()
    opt.step(closure(model, batch(30, seed=1)))
    assert opt.last_step.outcome is Outcome.ACCEPTED


@pytest.mark.parametrize("solver", [None, *SOLVERS])
def test_lambda_may_fall_further_where_the_solver_measures_it(solver: str | None) -> None:
    opt = HessianFree([torch.nn.Parameter(torch.zeros(1))], solver=solver)
    assert opt.damping_bounds == (1e-8 if solver in (None, "cg") else 1e-14, 1e6)
    assert HessianFree(opt.param_groups[0]["params"], solver=solver, damping_bounds=(0.1, 2.0)).damping_bounds[0] == 0.1


@pytest.mark.parametrize("slope", [-1e-3, None])
def test_the_line_search_takes_the_slope_of_a_bent_step(slope: float | None) -> None:
    """The end of the step is lower, and its chord begins uphill: sin θ from 0 to 3π/2."""
    theta = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def solver(problem: DampedProblem) -> Path:
        return Path({1: torch.full_like(problem.b, 1.5 * math.pi)}, predicted=-1.0, iterations=1, slope=slope)

    opt = HessianFree([theta], curvature_opt="hessian", damping=2.0, solver=solver)
    opt.step(lambda: theta.sin().sum())
    assert opt.last_step.outcome is (Outcome.NO_DECREASE if slope is None else Outcome.ACCEPTED)


@pytest.mark.parametrize("alike", [True, False])
@pytest.mark.parametrize("solver", ["direct", "sampled"])
def test_rows_in_factors_take_the_same_steps(solver: str, alike: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In row space, in parameter space, and from micro-batches of unlike size."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 40), nn.Tanh(), nn.Linear(40, 2)).double()
    twin = copy.deepcopy(model)
    every = Sampled(redundancy=math.inf) if solver == "sampled" else solver

    def steps(network: nn.Sequential) -> StepRecord:
        hidden, last = ([*network[i].parameters()] for i in (0, 2))
        groups: list[dict[str, Any]] = [
            {"params": hidden, "weight_decay": 0.0 if alike else 0.01}, {"params": last},
        ]  # fmt: skip
        opt = HessianFree(groups, solver=every)
        for _ in range(3):
            opt.acc_step(network, mse_loss, [batch(11, seed=1), batch(24, seed=2)], micro_batches_in_memory=2)
        return opt.last_step

    whole = steps(model)
    monkeypatch.setattr(jacobian, "LARGE", 0)
    monkeypatch.setattr(outer_products, "WORTH", 0.0)
    seen: list[type] = []
    share = ((3 + 40) + 40 + (40 + 2) + 2) / (3 * 40 + 40 + 40 * 2 + 2)
    monkeypatch.setattr(System, "__init__", spied(System.__init__, lambda factor: seen.append(type(factor.R))))
    factored = steps(twin)
    assert (factored.solver, factored.outcome) == (whole.solver, whole.outcome)
    assert factored.matrices == pytest.approx(whole.matrices * (share if alike or solver == "sampled" else 1.0))
    assert set(seen) == {OuterRows}
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-8, atol=1e-8)


def spied(init: Callable[..., None], see: Callable[[Any], None]) -> Callable[..., None]:
    def spying(self: System, factor: Any, g: Tensor, *, in_rows: bool) -> None:
        see(factor)
        init(self, factor, g, in_rows=in_rows)

    return spying
