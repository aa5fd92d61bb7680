"""Every option has a test that fails when the option is disconnected; a list of them all sees to it."""

from __future__ import annotations

import inspect
import math
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from latephase import CGStop, HessianFree, Outcome
from latephase.curvature import CurvatureWarning
from latephase.distributed import ALONE, Alone
from latephase.parts import (
    CG,
    Armijo,
    Backtracking,
    ConstantDamping,
    DampedProblem,
    FullStep,
    LastIterate,
    LevenbergMarquardt,
    LineSearchResult,
    Path,
    StepChoice,
)
from tests.contract import (
    Batch,
    Problem,
    Spy,
    batch,
    closure,
    dense,
    flat,
    ggn,
    gradient,
    hessian,
    identity,
    plain_network,
)

Test = TypeVar("Test", bound=Callable[..., None])

SHOWN: set[str] = set()


def shows(*options: str) -> Callable[[Test], Test]:
    """Say which options, as "method.argument", a test would see disconnected."""

    def register(test: Test) -> Test:
        SHOWN.update(options)
        return test

    return register


def test_every_option_has_a_test() -> None:
    methods = ["__init__", "step", "acc_step", "get_preconditioner", "test_reduction"]
    there_are = {
        f"{method}.{name}"
        for method in methods
        for name in inspect.signature(getattr(HessianFree, method)).parameters
        if name != "self"
    }
    assert there_are == SHOWN


@pytest.fixture
def spy(monkeypatch: pytest.MonkeyPatch) -> Spy:
    """Installed between the optimizer and conjugate gradients."""
    return Spy(monkeypatch)


def plain(**options: Any) -> Problem:
    """A problem without buffers and random numbers, so that every quantity can be computed beside the step."""
    return Problem(plain_network(), **{"cg_max_iter": 50, **options})


def loss_of(model: Callable[[Tensor], Tensor], data: Batch, loss_func: Any = mse_loss) -> float:
    with torch.no_grad():
        return float(closure(model, data, loss_func)()[0])


def union(batches: list[Batch]) -> Batch:
    inputs, targets = zip(*batches, strict=True)
    return torch.cat(inputs), torch.cat(targets)


def theta(problem: Problem) -> Tensor:
    parameters = list(problem.model.parameters())
    return flat(parameters, parameters)


def assert_close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-11)


# ---------------------------------------------------------------------- the constructor


@shows("__init__.params")
def test_params() -> None:
    problem = plain()
    before = [p.detach().clone() for p in problem.model.parameters()]
    problem.opt = HessianFree(problem.model[2].parameters())
    problem.step()
    moved = [not torch.equal(p, q) for p, q in zip(problem.model.parameters(), before, strict=True)]
    assert moved == [False, False, True, True]


@shows("__init__.curvature_opt")
def test_curvature_opt(spy: Spy) -> None:
    problems = [plain(), plain(curvature_opt="ggn"), plain(curvature_opt="hessian")]
    model, data = problems[0].model, problems[0].gradient[0]
    G, H = ggn(model, data), hessian(model, data)
    assert float((G - H).norm()) > 0.1
    for problem in problems:
        problem.step()
    for A, C in zip(spy.A, [G, G, H], strict=True):
        assert_close(A, C + identity(C))


@shows("__init__.damping")
def test_damping(spy: Spy) -> None:
    problems = [plain(), plain(damping=0.0), plain(damping=0.5), plain(damping=20.0)]
    G = ggn(problems[0].model, problems[0].gradient[0])
    for problem in problems:
        problem.step()
    for A, problem, damping in zip(spy.A, problems, [1.0, 0.0, 0.5, 20.0], strict=True):
        assert_close(A, G + damping * identity(G))
        assert problem.opt.last_step.damping == damping


@shows("__init__.adapt_damping")
def test_adapt_damping() -> None:
    for problem in (plain(), plain(adapt_damping=True)):
        problem.step()
        assert problem.opt.last_step.reduction_ratio > 0.75
        assert problem.opt.param_groups[0]["damping"] == pytest.approx(2.0 / 3.0)
    constant = plain(adapt_damping=False)
    for _ in range(3):
        constant.step()
        assert constant.opt.last_step.next_damping == constant.opt.param_groups[0]["damping"] == 1.0


@shows("__init__.cg_max_iter")
def test_cg_max_iter() -> None:
    for number in (1, 3, 7):
        problem = plain(cg_max_iter=number, martens_conv_crit=False)
        problem.step()
        assert problem.opt.last_step.cg_iterations == number
        assert problem.opt.last_step.cg_stop is CGStop.MAX_ITERATIONS
    # An ill-conditioned system keeps rounding from solving it in P iterations. None means P, and the default is 250.
    scale = torch.logspace(-8, 8, theta(plain()).numel(), dtype=torch.float64)
    rotation, _ = torch.linalg.qr(
        torch.randn(len(scale), len(scale), generator=torch.Generator().manual_seed(0)).double()
    )
    C = rotation @ torch.diag(scale) @ rotation.T
    iterations = []
    given: list[dict[str, Any]] = [{"cg_max_iter": None}, {"cg_max_iter": 250}, {}]
    for options in given:
        problem = plain()
        problem.opt = HessianFree(problem.model.parameters(), damping=0.0, martens_conv_crit=False, **options)
        problem.step(mvp=lambda v: C @ v)
        iterations.append(problem.opt.last_step.cg_iterations)
    assert iterations == [len(scale), 250, 250]


@shows("__init__.cg_decay_x0")
@pytest.mark.parametrize(("options", "decay"), [({}, 0.95), ({"cg_decay_x0": 0.5}, 0.5), ({"cg_decay_x0": 1.0}, 1.0)])
def test_cg_decay_x0(spy: Spy, options: dict[str, Any], decay: float) -> None:
    problem = plain(**options)
    problem.step()
    problem.step()
    assert spy.options[0]["x0"] is None
    last = spy.paths[0].iterates[spy.paths[0].last]
    assert_close(spy.options[1]["x0"], decay * last)


@shows("__init__.cg_decay_x0")
def test_cg_decay_x0_of_zero_is_a_cold_start(spy: Spy) -> None:
    cold = plain(cg_decay_x0=0.0)
    for _ in range(2):
        cold.step()
        assert not cold.opt.last_step.warm_started
        assert spy.paths[-1].values[0] == 0.0


@shows("__init__.use_cg_backtracking")
def test_use_cg_backtracking() -> None:
    options = {"damping": 1e-4, "martens_conv_crit": False, "use_linesearch": False}
    records = {}
    for use in (None, True, False):
        problem = plain(**options, **({} if use is None else {"use_cg_backtracking": use}))
        inputs, targets = batch(20, seed=4)
        with torch.no_grad():  # B̄ asks for a fifth of the change that B asks for
            outputs = problem.model(inputs)
        problem.step(evaluate=closure(problem.model, (inputs, outputs + 0.2 * (targets - outputs))))
        records[use] = problem.opt.last_step
    assert records[False].cg_iterate == records[False].cg_iterations == records[True].cg_iterations
    assert records[None].cg_iterate == records[True].cg_iterate < records[True].cg_iterations
    assert records[True].cg_iterate in Backtracking().wanted(50)
    assert records[True].loss_after < records[False].loss_after


@shows("__init__.lr")
def test_lr() -> None:
    moves = {}
    for lr in (1.0, 0.5, 0.0):
        problem = plain(lr=lr, use_linesearch=False)
        before = theta(problem)
        problem.step()
        moves[lr] = theta(problem) - before
    assert_close(moves[0.5], 0.5 * moves[1.0])
    assert not moves[0.0].any()
    assert moves[1.0].any()
    searched = plain(lr=0.5)
    searched.step()
    assert searched.opt.last_step.step_size == 0.5  # where the line search began


@shows("__init__.use_linesearch")
def test_use_linesearch() -> None:
    records = {}
    for use in (True, False):
        problem = plain(use_linesearch=use, lr=10.0)
        problem.step()
        records[use] = problem.opt.last_step
    assert records[False].step_size == 10.0
    assert records[False].loss_after > records[False].loss_before
    assert records[True].loss_after < records[True].loss_before
    reductions = math.log(records[True].step_size / 10.0) / math.log(0.8)
    assert reductions == pytest.approx(round(reductions))
    assert 1 <= round(reductions) <= 20
    default = plain(lr=10.0)
    default.step()
    assert default.opt.last_step.step_size == records[True].step_size


@shows("__init__.verbose")
def test_verbose(capsys: pytest.CaptureFixture[str]) -> None:
    plain().step()
    plain(verbose=False).acc_step()
    assert capsys.readouterr().out == ""
    problem = plain(verbose=True)
    problem.step()
    assert capsys.readouterr().out == f"{problem.opt.last_step}\n"
    problem.acc_step()
    assert "the step was taken" in capsys.readouterr().out


@shows("__init__.weight_decay")
@pytest.mark.parametrize("way", ["step", "acc_step"])
def test_weight_decay_enters_loss_gradient_and_curvature(spy: Spy, way: str) -> None:
    without, decayed = plain(), plain(weight_decay=0.3)
    for problem in (without, decayed):
        getattr(problem, way)()
    start = theta(plain())
    penalty = 0.15 * float(start.dot(start))
    assert decayed.opt.last_step.loss_before == pytest.approx(without.opt.last_step.loss_before + penalty, rel=1e-12)
    assert decayed.opt.last_step.loss_model == pytest.approx(without.opt.last_step.loss_model + penalty, rel=1e-12)
    assert_close(spy.b[1], spy.b[0] - 0.3 * start)
    assert_close(spy.A[1], spy.A[0] + 0.3 * identity(spy.A[0]))
    end = theta(decayed)
    evaluation = [decayed.evaluation[0]] if way == "step" else decayed.evaluation
    expected = loss_of(decayed.model, union(evaluation)) + 0.15 * float(end.dot(end))
    assert decayed.opt.last_step.loss_after == pytest.approx(expected, rel=1e-12)


@shows("__init__.weight_decay")
def test_weight_decay_is_added_to_what_the_user_brings(spy: Spy) -> None:
    problem = plain(weight_decay=0.3)
    g, start = gradient(problem.model, problem.gradient[0]), theta(problem)
    problem.step(grad=g, mvp=lambda v: 2.0 * v)
    assert_close(spy.b[0], -(g + 0.3 * start))
    assert_close(spy.A[0], (2.0 + 0.3 + 1.0) * identity(spy.A[0]))


@shows("__init__.martens_conv_crit")
def test_martens_conv_crit() -> None:
    records = {}
    for use in (True, False):
        problem = plain(martens_conv_crit=use, damping=1e-3, cg_max_iter=200)
        problem.step()
        records[use] = problem.opt.last_step
    assert records[True].cg_stop is CGStop.RELATIVE_PROGRESS
    assert records[False].cg_stop in (CGStop.SOLVED, CGStop.MAX_ITERATIONS)
    assert 10 < records[True].cg_iterations < records[False].cg_iterations
    default = plain(damping=1e-3, cg_max_iter=200)
    default.step()
    assert default.opt.last_step.cg_stop is CGStop.RELATIVE_PROGRESS


class Saddle(nn.Module):
    """½(x² − 4y²) + x + y at the origin: minus the gradient is (−1, −1), and the curvature along it is −3."""

    def __init__(self) -> None:
        super().__init__()
        self.point = nn.Parameter(torch.zeros(2, dtype=torch.float64))

    def forward(self) -> Tensor:
        x, y = self.point
        return 0.5 * (x**2 - 4.0 * y**2) + x + y


@shows("__init__.nonpos_curv_option")
@pytest.mark.parametrize(
    ("options", "move", "outcome"),
    [
        ({}, 0.0, Outcome.NO_DIRECTION),
        ({"nonpos_curv_option": "stop"}, 0.0, Outcome.NO_DIRECTION),
        ({"nonpos_curv_option": "saddle-free"}, -2.0 / 3.0, Outcome.ACCEPTED),
        ({"nonpos_curv_option": "ignore"}, 2.0 / 3.0, Outcome.ACCEPTED),
    ],
)
def test_nonpos_curv_option(options: dict[str, Any], move: float, outcome: Outcome) -> None:
    saddle = Saddle()
    opt = HessianFree(
        saddle.parameters(), curvature_opt="hessian", damping=0.0, cg_max_iter=1, use_linesearch=False, **options
    )
    opt.step(saddle)
    assert opt.last_step.outcome is outcome
    assert (opt.last_step.cg_stop is CGStop.NON_POSITIVE_CURVATURE) is (outcome is Outcome.NO_DIRECTION)
    assert saddle.point.tolist() == pytest.approx([move, move], rel=1e-12)


@shows("__init__.damping_bounds")
def test_damping_bounds() -> None:
    succeeding = plain(damping_bounds=(0.9, 1.2))
    succeeding.step()
    assert succeeding.opt.param_groups[0]["damping"] == succeeding.opt.last_step.next_damping == 0.9
    failing = plain(damping_bounds=(0.9, 1.2), damping_rule=LevenbergMarquardt(beyond=math.inf))
    for _ in range(2):
        failing.step(mvp=lambda v: 1e-3 * v, grad=-gradient(failing.model, failing.gradient[0]))  # goes uphill
        assert failing.opt.last_step.outcome is Outcome.NO_DECREASE
        assert failing.opt.param_groups[0]["damping"] == failing.opt.last_step.next_damping == 1.2
    without = plain()
    without.step()
    assert without.opt.param_groups[0]["damping"] == pytest.approx(2.0 / 3.0)


@shows("__init__.product_dtype")
def test_product_dtype(spy: Spy) -> None:
    for options in ({}, {"product_dtype": None}, {"product_dtype": torch.bfloat16}):
        problem = Problem(plain_network(3, 16, 2), **options)
        problem.step()
        assert problem.opt.last_step.outcome is Outcome.ACCEPTED
    exact, none, rounded = spy.A
    assert torch.equal(exact, none)
    assert rounded.dtype is torch.float64
    error = float((rounded - exact).norm() / exact.norm())
    assert 1e-6 < error < 1e-2
    assert_close(spy.b[2], spy.b[0])  # the gradient is none of its business


@shows("__init__.compile")
def test_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: Counter[str] = Counter()

    def compiler(function: Callable[..., Any], *args: Any, **options: Any) -> Callable[..., Any]:
        def compiled(*args: Any, **kwargs: Any) -> Any:
            calls["run"] += 1
            return function(*args, **kwargs)

        calls["compiled"] += 1
        return compiled

    monkeypatch.setattr(torch, "compile", compiler)
    # A network that no other test has, as what is compiled is kept for all optimizers of the process.
    networks = [plain_network(3, 17, 2) for _ in range(3)]
    Problem(networks[0]).step()
    Problem(networks[1], compile=False).step()
    assert not calls
    Problem(networks[2], compile=True).step()
    assert calls["compiled"] >= 1
    assert calls["run"] >= 4  # in every product
    for p, q in zip(networks[0].parameters(), networks[2].parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-12)


# ---------------------------------------------------------------------- the parts, as objects


class Dense:
    """A solver of one's own: the model's minimum by a dense factorisation."""

    def __call__(self, problem: DampedProblem) -> Path:
        A = dense(problem.product, problem.b)
        p = torch.linalg.solve(A, problem.b)
        return Path({7: p}, predicted=float(-0.5 * problem.b @ p), iterations=7)


def moved(**options: Any) -> tuple[Tensor, Problem]:
    """Where two steps lead, and how."""
    problem = plain(**options)
    for _ in range(2):
        problem.step()
    return theta(problem), problem


@shows("__init__.solver")
def test_solver() -> None:
    assert HessianFree(plain_network().parameters()).solver == CG()
    cases: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"cg_max_iter": 250}, {"solver": "cg"}),
        ({"cg_max_iter": 3}, {"solver": CG(max_iter=3)}),
        ({"cg_max_iter": None, "cg_decay_x0": 0.5}, {"solver": CG(max_iter=None, decay_x0=0.5)}),
        ({"martens_conv_crit": False, "cg_max_iter": 9}, {"solver": CG(martens=False, max_iter=9)}),
    ]
    for by_flags, by_part in cases:
        expected, _ = moved(**by_flags)
        actual, _ = moved(cg_max_iter=250, **by_part)
        assert torch.equal(actual, expected)
    assert HessianFree(plain_network().parameters(), nonpos_curv_option="ignore").solver == CG(nonpositive="ignore")


def test_a_solver_of_ones_own() -> None:
    problem = plain(cg_max_iter=250, solver=Dense(), line_search=FullStep())
    before, (model, data) = theta(problem), (problem.model, problem.gradient[0])
    G, g = ggn(model, data), gradient(model, data)
    problem.step()
    assert_close(theta(problem), before - torch.linalg.solve(G + identity(G), g))
    record = problem.opt.last_step
    assert (record.cg_iterate, record.cg_iterations, record.cg_stop, record.warm_started) == (7, 7, None, False)
    assert 0.0 < record.reduction_ratio < 2.0


class Nowhere:
    """A solver that finds no direction."""

    def __call__(self, problem: DampedProblem) -> Path:
        return Path({}, predicted=0.0)


def test_a_solver_that_finds_nothing() -> None:
    problem = plain(cg_max_iter=250, solver=Nowhere())
    before = theta(problem)
    problem.step()
    assert problem.opt.last_step.outcome is Outcome.NO_DIRECTION
    assert problem.opt.last_step.next_damping == 1.5
    assert torch.equal(theta(problem), before)


@shows("__init__.damping_rule")
def test_damping_rule() -> None:
    assert HessianFree(plain_network().parameters()).damping_rule == LevenbergMarquardt()
    assert HessianFree(plain_network().parameters(), adapt_damping=False).damping_rule == ConstantDamping()
    for rule, damping in [(LevenbergMarquardt(decrease=0.5), 0.5), (ConstantDamping(), 1.0), (lambda a, p: 3.0, 3.0)]:
        problem = plain(damping_rule=rule)
        problem.step()
        assert problem.opt.last_step.next_damping == damping


@shows("__init__.backtracking")
def test_backtracking(spy: Spy) -> None:
    assert HessianFree(plain_network().parameters()).backtracking == Backtracking()
    assert HessianFree(plain_network().parameters(), use_cg_backtracking=False).backtracking == LastIterate()
    options = {"damping": 1e-4, "martens_conv_crit": False}
    cases: list[tuple[StepChoice, set[int]]] = [
        (Backtracking(), {0, 1, 2, 3}),
        (Backtracking(gamma=3.0), {0, 2, 8, 26}),
        (LastIterate(), set()),
    ]
    for part, there_are in cases:
        problem = plain(backtracking=part, **options)
        problem.step()
        last = problem.opt.last_step.cg_iterations
        kept = set(spy.paths[-1].iterates)
        assert kept >= {n for n in there_are if n < last}
        assert kept == {n for n in part.wanted(50) if n <= last} | {last}


@shows("__init__.line_search")
def test_line_search() -> None:
    assert HessianFree(plain_network().parameters()).line_search == Armijo()
    assert HessianFree(plain_network().parameters(), use_linesearch=False).line_search == FullStep()
    quarter = lambda loss_at, loss_0, slope: LineSearchResult(0.25, loss_at(0.25))  # noqa: E731
    shortened = {beta: {beta**j for j in range(1, 20)} for beta in (0.5, 0.7)}
    for part, sizes in [
        (FullStep(), {1.0}),
        (quarter, {0.25}),
        (Armijo(beta=0.5), shortened[0.5]),
        (Armijo(beta=0.7), shortened[0.7]),
        (Armijo(max_reductions=1), {0.0}),
    ]:
        problem = plain(line_search=part, damping=0.0, cg_max_iter=1)
        G = ggn(problem.model, problem.gradient[0])
        problem.step(mvp=lambda v, G=G: 0.1 * G @ v)  # ten times too long
        assert any(problem.opt.last_step.step_size == pytest.approx(size) for size in sizes)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"solver": CG(), "cg_max_iter": 10}, "solver replaces cg_max_iter"),
        ({"solver": CG(), "cg_decay_x0": 0.5}, "solver replaces cg_max_iter"),
        ({"solver": CG(), "martens_conv_crit": False}, "solver replaces cg_max_iter"),
        ({"solver": CG(), "nonpos_curv_option": "ignore"}, "solver replaces cg_max_iter"),
        ({"damping_rule": LevenbergMarquardt(), "adapt_damping": False}, "damping_rule is given, and switched off"),
        ({"backtracking": Backtracking(), "use_cg_backtracking": False}, "backtracking is given, and switched off"),
        ({"line_search": Armijo(), "use_linesearch": False}, "line_search is given, and switched off"),
        ({"solver": CG}, "solver must be an object, such as CG"),
        ({"line_search": Armijo}, "line_search must be an object, such as Armijo"),
        ({"solver": 3}, "solver must be callable"),
    ],
)
def test_a_part_and_its_flag_are_an_error(options: dict[str, Any], words: str) -> None:
    with pytest.raises(TypeError, match=words):
        HessianFree(plain_network().parameters(), **options)


def test_a_solver_that_there_is_not() -> None:
    with pytest.raises(ValueError, match="solver must be one of 'cg'"):
        HessianFree(plain_network().parameters(), solver="newton")


# ---------------------------------------------------------------------- step


@shows("step.closure")
def test_closure(spy: Spy) -> None:
    problem = plain()
    data, start = batch(9, seed=40), plain_network()
    problem.opt.step(closure(problem.model, data))
    assert problem.opt.last_step.loss_model == pytest.approx(loss_of(start, data), rel=1e-12)
    assert problem.opt.last_step.loss_before == problem.opt.last_step.loss_model  # B̄ = B by default
    assert_close(spy.b[0], -gradient(start, data))
    assert_close(spy.A[0], ggn(start, data) + identity(spy.A[0]))


@shows("step.evaluate")
def test_evaluate() -> None:
    problem = plain()
    data = batch(9, seed=41)
    before = loss_of(problem.model, data)
    returned = problem.opt.step(problem.forward, evaluate=closure(problem.model, data))
    record = problem.opt.last_step
    assert record.loss_before == pytest.approx(before, rel=1e-12)
    assert returned == record.loss_after == pytest.approx(loss_of(problem.model, data), rel=1e-12)
    assert record.loss_model == pytest.approx(loss_of(plain_network(), problem.gradient[0]), rel=1e-12)
    # The loss alone is enough.
    other = plain()
    assert other.opt.step(other.forward, evaluate=lambda: closure(other.model, data)()[0]) == returned


@shows("step.forward")
def test_forward() -> None:
    first, second = plain(), plain()
    assert first.opt.step(forward=first.forward) == second.opt.step(second.forward)
    assert first.opt.last_step.outcome is Outcome.ACCEPTED


@shows("__init__.outputs")
def test_outputs(spy: Spy) -> None:
    kept: list[Tensor] = []

    def forward() -> Tensor:
        outputs = problem.model(problem.gradient[0][0])
        kept[:] = [outputs]
        mse_loss(outputs, problem.gradient[0][1]).exp().backward()  # nothing that outputs are told from
        return torch.tensor(0.0)

    problem = plain()
    with pytest.raises(ValueError, match=r"Exp.*outputs"):
        problem.opt.step(forward)
    problem = plain(outputs=lambda: {"prediction": kept[0]})
    model, data = problem.model, problem.gradient[0]
    G, g, scale = ggn(model, data), gradient(model, data), math.exp(loss_of(model, data))
    problem.opt.step(forward)
    assert_close(spy.A[-1], scale * (G + torch.outer(g, g)) + identity(G))


class Heavier(Alone):
    """Others have what makes each sum of weights 4."""

    def number(self, what: str, compute: Callable[[], float]) -> float:
        compute()
        return 4.0 if "weight" in what and "sum" in what else compute()


@shows("__init__.process_group")
def test_process_group(monkeypatch: pytest.MonkeyPatch) -> None:
    groups: list[object] = []
    monkeypatch.setattr("latephase.damped_optimizer.find_ranks", lambda group, *_, **__: groups.append(group) or ALONE)
    for group in None, "world":
        problem = plain(process_group=group)
        problem.step()
        problem.acc_step()
    assert groups == [None, None, "world", "world"]


@shows("step.weight", "step.evaluate_weight")
def test_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("latephase.damped_optimizer.find_ranks", lambda *_, **__: Heavier())
    for evaluate in False, True:
        problem = plain()
        data = batch(9, seed=41)
        judged: dict[str, Any] = {"evaluate": closure(problem.model, data), "evaluate_weight": 3.0} if evaluate else {}
        expected = loss_of(problem.model, problem.gradient[0])
        expected_there = 3.0 * loss_of(problem.model, data) if evaluate else 2.0 * expected
        g = gradient(problem.model, problem.gradient[0])
        problem.opt.step(problem.forward, weight=2.0, **judged)
        record = problem.opt.last_step
        assert record.loss_model == pytest.approx(2.0 / 4.0 * expected, rel=1e-12)
        assert record.loss_before == pytest.approx(expected_there / 4.0, rel=1e-12)
        assert record.grad_norm == pytest.approx(2.0 / 4.0 * float(g.norm()), rel=1e-12)


@shows("step.grad")
def test_grad(spy: Spy) -> None:
    problem = plain()
    g = torch.linspace(-1.0, 1.0, theta(problem).numel(), dtype=torch.float32)  # cast to the parameters' dtype
    problem.step(grad=g)
    assert_close(spy.b[0], -g.double())
    assert spy.b[0].dtype is torch.float64
    assert problem.opt.last_step.grad_norm == pytest.approx(float(g.double().norm()), rel=1e-12)
    assert problem.opt.last_step.loss_model is None
    assert problem.opt.last_step.counts.gradients == 0
    assert_close(spy.A[0], ggn(plain_network(), problem.gradient[0]) + identity(spy.A[0]))


@shows("step.mvp")
def test_mvp(spy: Spy) -> None:
    problem = plain()
    n = theta(problem).numel()
    C = torch.diag(torch.linspace(1.0, 3.0, n, dtype=torch.float64)) + 0.1
    problem.step(mvp=lambda v: (C @ v).float())
    torch.testing.assert_close(spy.A[0], C + identity(C), rtol=1e-6, atol=1e-6)
    assert problem.opt.last_step.counts.linearisations == 0
    assert_close(spy.b[0], -gradient(plain_network(), problem.gradient[0]))


@shows("step.M_func")
def test_the_preconditioner_of_step(spy: Spy) -> None:
    problem = plain(martens_conv_crit=False)
    inverse = torch.linalg.inv(ggn(problem.model, problem.gradient[0]) + identity(theta(problem)))
    problem.step(M_func=lambda v: inverse @ v)
    assert_close(dense(spy.options[0]["M"], spy.b[0]), inverse)
    first = spy.paths[0].iterates[1]
    torch.testing.assert_close(first, inverse @ spy.b[0], rtol=1e-6, atol=1e-8)  # preconditioned by A⁻¹, one is enough
    without = plain(martens_conv_crit=False)
    without.step()
    assert without.opt.last_step.cg_iterations > problem.opt.last_step.cg_iterations


@shows("step.mvp", "step.M_func")
@pytest.mark.parametrize("name", ["mvp", "M_func"])
def test_functions_of_the_user_may_work_in_place_or_return_what_they_got(name: str) -> None:
    ends = []
    for function in (lambda v: 0.5 * v, lambda v: v.mul_(0.5)):
        problem = plain()
        problem.step(**{name: function})
        ends.append(theta(problem))
    assert_close(ends[0], ends[1])
    same, plainly = plain(), plain()
    same.step(M_func=lambda v: v)
    plainly.step()
    assert_close(theta(same), theta(plainly))


def shuffling(model: nn.Module) -> Callable[[], tuple[Tensor, Tensor]]:
    """A closure that takes another batch each time it is called."""
    calls: list[int] = []

    def forward() -> tuple[Tensor, Tensor]:
        calls.append(len(calls))
        return closure(model, batch(16, seed=calls[-1]))()

    return forward


@shows("step.test_deterministic")
def test_step_test_deterministic() -> None:
    problem = plain()
    start = theta(problem)
    with pytest.warns(UserWarning, match=r"evaluated twice.*differ: the loss, the gradient, a curvature product"):
        problem.opt.step(shuffling(problem.model), test_deterministic=True)
    problem = plain()
    twice: list[int] = []

    def noisy(v: Tensor) -> Tensor:
        twice.append(1)
        return float(len(twice)) * v

    with pytest.warns(UserWarning, match=r"differ: a curvature product\. "):
        problem.step(mvp=noisy, test_deterministic=True)
    problem = plain()
    problem.opt.step(shuffling(problem.model))  # not asked for: no warning
    checked, unchecked = plain(), plain()
    assert checked.step(test_deterministic=True) == unchecked.step()
    assert checked.opt.last_step.counts == unchecked.opt.last_step.counts
    assert torch.equal(theta(checked), theta(unchecked))
    assert not torch.equal(theta(checked), start)


def test_dropout_and_batch_norm_are_deterministic_within_a_step() -> None:
    for way in ("step", "acc_step"):
        problem, twin = Problem(), Problem()
        torch.manual_seed(0)
        getattr(problem, way)(test_deterministic=True)  # no warning
        torch.manual_seed(0)
        getattr(twin, way)()
        assert torch.equal(theta(problem), theta(twin))
        assert int(problem.model[1].get_buffer("num_batches_tracked")) == 1


def test_the_test_for_determinism_makes_its_own_random_numbers() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    plain().step(test_deterministic=True)
    assert torch.equal(before, torch.get_rng_state())


# ---------------------------------------------------------------------- acc_step


@shows("acc_step.model")
def test_model() -> None:
    problem = plain()
    problem.opt.acc_step(lambda x: 3.0 * problem.model(x), mse_loss, problem.evaluation)
    expected = loss_of(lambda x: 3.0 * plain_network()(x), union(problem.evaluation))
    assert problem.opt.last_step.loss_before == pytest.approx(expected, rel=1e-12)


@shows("acc_step.loss_func")
def test_loss_func() -> None:
    problem = plain()
    start = plain_network()
    huber = nn.HuberLoss(delta=0.5)
    with pytest.warns(CurvatureWarning, match="no second derivative"):  # so far from the targets it is linear
        problem.opt.acc_step(problem.model, huber, problem.evaluation)
    expected = loss_of(start, union(problem.evaluation), huber)
    assert problem.opt.last_step.loss_before == pytest.approx(expected, rel=1e-12)


@shows("acc_step.loss_datalist", "acc_step.grad_datalist", "acc_step.mvp_datalist")
def test_datalists(spy: Spy) -> None:
    problem, start = plain(), plain_network()
    problem.acc_step()
    assert problem.opt.last_step.loss_before == pytest.approx(loss_of(start, union(problem.evaluation)), rel=1e-12)
    assert problem.opt.last_step.loss_model == pytest.approx(loss_of(start, union(problem.gradient)), rel=1e-12)
    assert_close(spy.b[0], -gradient(start, union(problem.gradient)))
    assert_close(spy.A[0], ggn(start, union(problem.curvature)) + identity(spy.A[0]))


@shows("acc_step.loss_datalist", "acc_step.grad_datalist", "acc_step.mvp_datalist")
def test_datalists_by_default_are_that_of_the_loss(spy: Spy) -> None:
    start = plain_network()
    for name in ("grad_datalist", "mvp_datalist"):
        problem = plain()
        lists: dict[str, Any] = {name: problem.gradient}
        problem.opt.acc_step(problem.model, mse_loss, problem.evaluation, **lists)
    assert_close(spy.b[0], -gradient(start, union(problem.gradient)))
    assert_close(spy.A[0], ggn(start, union(problem.evaluation)) + identity(spy.A[0]))
    assert_close(spy.b[1], -gradient(start, union(problem.evaluation)))
    assert_close(spy.A[1], ggn(start, union(problem.gradient)) + identity(spy.A[1]))


class MadeOnDemand:
    """A sequence that makes its micro-batches when asked, as data sets and loaders do."""

    def __init__(self, batches: list[Batch]) -> None:
        self._batches = batches

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, index: int) -> list[Tensor]:
        return [t.clone() for t in self._batches[index]]


@shows("acc_step.loss_datalist", "acc_step.grad_datalist", "acc_step.mvp_datalist")
@pytest.mark.parametrize("kind", [MadeOnDemand, iter, tuple])
def test_datalists_of_other_kinds(kind: Callable[[list[Batch]], Any]) -> None:
    expected, problem = plain(), plain()
    expected.acc_step()
    problem.acc_step(
        loss_datalist=kind(problem.evaluation),
        grad_datalist=kind(problem.gradient),
        mvp_datalist=kind(problem.curvature),
    )
    torch.testing.assert_close(theta(problem), theta(expected), rtol=1e-12, atol=1e-14)


class Elsewhere:
    """Inputs that have to be moved to the parameters' device before a model can use them."""

    def __init__(self, inputs: Tensor) -> None:
        self._inputs = inputs

    def to(self, device: torch.device) -> Tensor:
        assert device == torch.device("cpu")
        return self._inputs


@shows("acc_step.loss_datalist", "acc_step.grad_datalist", "acc_step.mvp_datalist")
def test_inputs_are_moved_to_the_parameters_device() -> None:
    expected, problem = plain(), plain()
    expected.acc_step()
    for name in ("gradient", "curvature", "evaluation"):
        setattr(problem, name, [(Elsewhere(inputs), targets) for inputs, targets in getattr(problem, name)])
    problem.acc_step()
    torch.testing.assert_close(theta(problem), theta(expected), rtol=1e-12, atol=1e-14)


@shows("acc_step.M_func")
def test_the_preconditioner_of_acc_step(spy: Spy) -> None:
    problem = plain()
    scale = torch.linspace(0.5, 2.0, theta(problem).numel(), dtype=torch.float64)
    problem.acc_step(M_func=lambda v: scale * v)
    assert_close(dense(spy.options[0]["M"], spy.b[0]), torch.diag(scale))


def squares(outputs: Tensor, targets: Tensor) -> Tensor:
    """The sum over all samples."""
    return (outputs - targets).square().sum()


def heavy(targets: Tensor) -> float:
    """Some weight that is not the number of samples."""
    return float(len(targets)) ** 2


@shows("acc_step.reduction")
@pytest.mark.parametrize(
    ("reduction", "loss_func", "weight"),
    [
        ("mean", mse_loss, len),
        ("sum", squares, None),
        (heavy, mse_loss, heavy),
        (lambda targets: torch.tensor(heavy(targets)), mse_loss, heavy),
    ],
)
def test_reduction(spy: Spy, reduction: Any, loss_func: Any, weight: Callable[[Tensor], float] | None) -> None:
    problem, start = plain(), plain_network()
    lists: dict[str, Any] = {
        "loss_datalist": problem.evaluation,
        "grad_datalist": problem.gradient,
        "mvp_datalist": problem.curvature,
    }
    problem.opt.acc_step(problem.model, loss_func, reduction=reduction, **lists)

    def weights(batches: list[Batch]) -> list[float]:
        if weight is None:
            return [1.0 for _ in batches]
        counts = [weight(targets) for _, targets in batches]
        return [n / sum(counts) for n in counts]

    def added(function: Callable[[nn.Module, Batch], Any], batches: list[Batch]) -> Any:
        return sum(w * function(start, data) for w, data in zip(weights(batches), batches, strict=True))

    g = added(lambda model, data: gradient(model, data, loss_func), problem.gradient)
    scale = {mse_loss: lambda data: 1.0, squares: lambda data: data[1].numel()}[loss_func]
    G = added(lambda model, data: scale(data) * ggn(model, data), problem.curvature)
    loss = added(lambda model, data: loss_of(model, data, loss_func), problem.evaluation)
    assert_close(spy.b[0], -g)
    assert_close(spy.A[0], G + identity(G))
    assert problem.opt.last_step.loss_before == pytest.approx(loss, rel=1e-12)


@shows("acc_step.reduction")
def test_reduction_is_the_mean_by_default() -> None:
    default, mean = plain(), plain()
    default.acc_step()
    mean.acc_step(reduction="mean")
    assert torch.equal(theta(default), theta(mean))


@shows("acc_step.test_deterministic")
def test_acc_step_test_deterministic() -> None:
    problem = plain()
    calls: list[int] = []

    def drifting(outputs: Tensor, targets: Tensor) -> Tensor:
        calls.append(1)
        return (1.0 + 0.01 * len(calls)) * mse_loss(outputs, targets)

    with (
        pytest.warns(
            CurvatureWarning, match="another loss when it was called again"
        ),  # at first use, without being asked
        pytest.warns(UserWarning, match="evaluated twice at the same point, these differ: the loss, the gradient"),
    ):
        problem.opt.acc_step(problem.model, drifting, problem.gradient, test_deterministic=True)
    problem.opt.acc_step(problem.model, drifting, problem.gradient)  # not asked for: no warning
    plain().acc_step(test_deterministic=True)  # nothing to say: no warning


@shows("acc_step.micro_batches_in_memory")
def test_micro_batches_in_memory() -> None:
    calls, counts, ends = {}, {}, {}
    for memory in (None, None, 1, 2, 3):  # twice: the very first call may trace the network
        problem = plain()
        seen: list[int] = []
        problem.model.register_forward_hook(lambda *args, seen=seen: seen.append(1))
        options = {} if memory is None else {"micro_batches_in_memory": memory}
        problem.acc_step(mvp_datalist=problem.gradient, **options)
        calls[memory], counts[memory], ends[memory] = len(seen), problem.opt.last_step.counts, theta(problem)
    assert calls[1] > calls[2] > calls[3]
    assert calls[None] == calls[1]
    assert counts[1].linearisations > counts[2].linearisations > counts[3].linearisations == 0
    for memory in (1, 2):  # of three micro-batches, one less than fit is kept
        assert counts[memory].linearisations == (4 - memory) * counts[memory].products
    for memory in (1, 2, 3):
        torch.testing.assert_close(ends[memory], ends[None], rtol=1e-9, atol=1e-12)


# ---------------------------------------------------------------------- get_preconditioner


def per_sample(model: nn.Module, data: Batch, loss_func: Any = mse_loss) -> Tensor:
    """One row per sample: the gradient of its loss."""
    inputs, targets = data
    rows = [gradient(model, (x.unsqueeze(0), y.unsqueeze(0)), loss_func) for x, y in zip(inputs, targets, strict=True)]
    return torch.stack(rows)


@shows(
    "get_preconditioner.model",
    "get_preconditioner.loss_func",
    "get_preconditioner.inputs",
    "get_preconditioner.targets",
    "get_preconditioner.reduction",
    "get_preconditioner.exponent",
)
@pytest.mark.parametrize("exponent", [None, 1.0, 0.5])
@pytest.mark.parametrize(("loss_func", "reduction"), [(mse_loss, "mean"), (squares, "sum"), (nn.HuberLoss(), "mean")])
def test_get_preconditioner(loss_func: Any, reduction: str, exponent: float | None) -> None:
    problem = plain(damping=0.25, weight_decay=0.125)
    data = batch(11, seed=21)
    options: dict[str, Any] = {} if exponent is None else {"exponent": exponent}
    M = problem.opt.get_preconditioner(problem.model, loss_func, *data, reduction, **options)
    squared = per_sample(problem.model, data, loss_func).square()
    diagonal = squared.mean(dim=0) if reduction == "mean" else squared.sum(dim=0)
    expected = (diagonal + 0.125 + 0.25).pow(-(0.75 if exponent is None else exponent))
    v = torch.linspace(-1.0, 1.0, len(expected), dtype=torch.float64)
    assert_close(M(v), expected * v)


class Convolutional(nn.Module):
    """Convolution, BatchNorm (that has seen other data) and a head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convolution = nn.Conv2d(1, 2, 3)
        self.norm = nn.BatchNorm2d(2)
        self.head = nn.Linear(8, 3)
        self.norm.running_mean.uniform_(-0.5, 0.5)
        self.norm.running_var.uniform_(0.5, 2.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.norm(self.convolution(x))).flatten(1))


def images(n: int) -> Batch:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(n, 1, 4, 4, generator=generator, dtype=torch.float64)
    return inputs, torch.randint(3, (n,), generator=generator)


@shows("get_preconditioner.model")
def test_get_preconditioner_of_convolutions_and_batch_norm_for_more_samples_than_a_chunk() -> None:
    model = Convolutional().double().eval()
    opt = HessianFree(model.parameters())
    inputs, targets = images(70)
    M = opt.get_preconditioner(model, cross_entropy, inputs, targets, "mean")
    diagonal = per_sample(model, (inputs, targets), cross_entropy).square().mean(dim=0)
    assert_close(dense(M, diagonal), torch.diag((diagonal + 1.0).pow(-0.75)))
    model.train()
    with pytest.raises(ValueError, match=r"'norm' \(BatchNorm2d\).*model\.eval\(\)"):
        opt.get_preconditioner(model, cross_entropy, inputs, targets, "mean")


@shows("get_preconditioner.model")
def test_a_preconditioned_step() -> None:
    model = Convolutional().double().eval()
    opt = HessianFree(model.parameters(), damping=0.1)
    inputs, targets = images(30)
    for _ in range(3):
        M = opt.get_preconditioner(model, cross_entropy, inputs, targets, "mean")
        before = opt.last_step
        opt.step(closure(model, (inputs, targets), cross_entropy), M_func=M)
        assert opt.last_step.outcome is Outcome.ACCEPTED
        assert before is None or opt.last_step.loss_after < before.loss_after


# ---------------------------------------------------------------------- test_reduction


class Tokens:
    """Classification with ignored targets: the loss is a mean over those that are left."""

    @staticmethod
    def data() -> list[Batch]:
        first, second = batch(12, seed=1, outputs=2)[0], batch(8, seed=2, outputs=2)[0]
        labels = [(x[:, 0] > 0.0).long() for x in (first, second)]
        labels[0][:7] = -100
        return list(zip((first, second), labels, strict=True))

    @staticmethod
    def weight(targets: Tensor) -> float:
        return float((targets != -100).sum())


@shows("test_reduction.model", "test_reduction.loss_func", "test_reduction.datalist", "test_reduction.reduction")
def test_test_reduction_passes_where_micro_batches_add_up() -> None:
    problem = plain(weight_decay=0.1)
    for arguments in (
        (problem.model, mse_loss, problem.gradient, "mean"),
        (problem.model, squares, problem.gradient, "sum"),
        (problem.model, mse_loss, MadeOnDemand(problem.gradient), "mean"),
        (problem.model, mse_loss, [tuple(t[:4] for t in data) for data in problem.gradient], lambda targets: 3.0),
        (problem.model, cross_entropy, Tokens.data(), Tokens.weight),
    ):
        assert problem.opt.test_reduction(*arguments) is None


@shows("test_reduction.model", "test_reduction.loss_func", "test_reduction.datalist", "test_reduction.reduction")
@pytest.mark.parametrize("curvature_opt", ["ggn", "hessian"])
def test_test_reduction_raises_where_they_do_not(curvature_opt: str) -> None:
    problem = plain(curvature_opt=curvature_opt)
    everything = r"in: the loss, the gradient, a curvature product;"
    mixing = nn.Sequential(problem.model, nn.BatchNorm1d(2, affine=False).double())
    for arguments, named in (
        ((problem.model, mse_loss, problem.gradient, "sum"), "reduction='sum'"),
        ((problem.model, squares, problem.gradient, "mean"), "reduction='mean'"),
        ((problem.model, mse_loss, problem.gradient, lambda targets: 1.0), "reduction=<function"),
        ((problem.model, cross_entropy, Tokens.data(), "mean"), "reduction='mean'"),
        ((mixing, mse_loss, problem.gradient, "mean"), "eval mode"),
    ):
        before = problem.snapshot()
        with pytest.raises(RuntimeError, match=everything) as raised:
            problem.opt.test_reduction(*arguments)
        assert named in str(raised.value)
        after = problem.snapshot()
        assert torch.equal(before["random numbers"], after["random numbers"])
    assert int(mixing[1].get_buffer("num_batches_tracked")) == 0


def test_warnings_are_errors_in_these_tests() -> None:
    """Else "no warning" above would show nothing."""
    with pytest.raises(UserWarning, match="this"):
        warnings.warn("this", UserWarning, stacklevel=1)


# ---------------------------------------------------------------------- λ where the gradient is noise


@dataclass(frozen=True)
class Growing(LevenbergMarquardt):
    """Whatever happens."""

    def __call__(self, actual: float, predicted: float) -> float:
        return 1.5


@pytest.mark.parametrize(("other_data", "limited"), [(True, True), (True, False), (False, True)])
def test_damping_grows_beyond_the_curvature_only_where_the_model_can_be_blamed(other_data: bool, limited: bool) -> None:
    """On other data than the model's it is the gradient's noise that parts model and loss, and λ does not mend that."""
    problem = plain(damping=0.1, damping_rule=Growing(**({} if limited else {"beyond": math.inf})))
    data = batch(9, seed=41)
    evaluate = closure(problem.model, data) if other_data else None
    for _ in range(30):
        largest = torch.linalg.eigvalsh(ggn(problem.model, problem.gradient[0])).max()
        problem.opt.step(problem.forward, evaluate=evaluate)
        record = problem.opt.last_step
        if other_data and limited:
            assert record.next_damping <= max(record.damping + largest / 50, largest) * (1 + 1e-9)
    if other_data and limited:
        assert 0.15 < record.next_damping < 0.1 * 1.5**29
    else:
        assert record.next_damping == pytest.approx(0.1 * 1.5**30, rel=1e-9)


@pytest.mark.parametrize("beyond", [0.0, 1.0 / 50.0, 0.3])
def test_beyond_the_curvature_damping_grows_by_a_share_of_it(beyond: float) -> None:
    """Conjugate gradients that solve the system meet the whole spectrum, so `largest` is that of the matrix."""
    problem = plain(damping=1e3, damping_rule=Growing(beyond=beyond))
    problem.opt.step(problem.forward, evaluate=closure(problem.model, batch(9, seed=41)))
    growth = problem.opt.last_step.next_damping - 1e3
    largest = float(torch.linalg.eigvalsh(ggn(plain().model, problem.gradient[0])).max())
    assert growth == 0.0 if beyond == 0.0 else 0.0 < growth <= beyond * largest * (1 + 1e-9)
    if beyond:
        assert growth > 0.01 * beyond * largest  # of the direction in hand, which is the gradient's


def test_damping_above_the_curvature_may_shrink() -> None:
    problem = plain(damping=1e4, damping_rule=LevenbergMarquardt(decrease=0.5, lower=1e-9, upper=1e-9))
    problem.opt.step(problem.forward, evaluate=closure(problem.model, batch(9, seed=41)))
    assert problem.opt.last_step.next_damping == 5e3


# ---------------------------------------------------------------------- what is set beforehand, what is left behind


def test_a_closure_that_was_set_is_used_where_none_is_given() -> None:
    direct, by_setting, with_both = plain(), plain(), plain()
    data = batch(9, seed=41)
    direct.opt.step(direct.forward, evaluate=closure(direct.model, data))

    by_setting.opt.set_closure(by_setting.forward, closure(by_setting.model, data))
    assert by_setting.opt.step() == direct.opt.last_step.loss_after

    def unused() -> Tensor:
        raise AssertionError

    with_both.opt.set_closure(unused, unused)
    with_both.opt.set_evaluation(closure(with_both.model, data))
    assert with_both.opt.step(with_both.forward) == direct.opt.last_step.loss_after

    by_setting.opt.set_closure(None)
    with pytest.raises(TypeError, match="step needs a closure"):
        by_setting.opt.step()
    for name, setting in (("closure", by_setting.opt.set_closure), ("evaluate", by_setting.opt.set_evaluation)):
        with pytest.raises(TypeError, match=f"{name} must be callable"):
            setting(3)  # type: ignore[arg-type]


@pytest.mark.parametrize("way", ["step", "acc_step"])
def test_the_gradient_on_the_model_batch_is_left_in_grad(way: str) -> None:
    """Of the loss, as in the first phase: weight decay, which an optimizer adds, is not in it."""
    problem = plain(weight_decay=0.1)
    inputs, targets = (torch.cat(parts) for parts in zip(*problem.gradient, strict=True))
    expected = gradient(problem.model, (inputs, targets) if way == "acc_step" else problem.gradient[0])
    getattr(problem, way)()
    grads = [p.grad for p in problem.model.parameters()]
    assert [None if g is None else g.shape for g in grads] == [p.shape for p in problem.model.parameters()]
    assert_close(torch.cat([g.flatten() for g in grads if g is not None]), expected)
    own = torch.linspace(-1.0, 1.0, len(expected), dtype=torch.float64)
    problem.step(grad=own, evaluate=None)
    assert_close(torch.cat([p.grad.flatten() for p in problem.model.parameters() if p.grad is not None]), own)
