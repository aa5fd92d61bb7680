"""A step is a transaction: whatever goes wrong in it, nothing is lost and the next step is as if it had not been."""

from __future__ import annotations

import copy
import gc
import math
import re
import sys
import weakref
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

import latephase.damped_optimizer
import latephase.objective
import latephase.optimizer
import latephase.parameters
import latephase.snapshots
import latephase.transaction
import latephase.trial_points
from latephase import CGStop, HessianFree, Outcome, StepUndoneWarning
from tests.contract import Problem, closure, differences, network, places, plain_network, report, values

WAYS = ["step", "acc_step"]


class DisturbanceError(Exception):
    """What the tests throw. No code under test can expect it."""


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> str:
    """The two ways to take a step."""
    return request.param


def prepared(way: str, **options: Any) -> Problem:
    """A problem after two steps, so that there is a warm start, and λ is no longer what it was."""
    torch.manual_seed(11)
    problem = Problem(weight_decay=0.01, **options)
    for _ in range(2):
        getattr(problem, way)()
    assert problem.opt.param_groups[0]["damping"] != 1.0
    return problem


def outcome_of_the_next_step(problem: Problem, way: str) -> dict[str, Any]:
    """Everything there is after one more step."""
    returned = getattr(problem, way)()
    assert problem.opt.last_step.outcome is Outcome.ACCEPTED
    return {"returned": returned, "report": report(problem.opt), **values(problem.model, problem.opt)}


def assert_nothing_left_behind(problem: Problem) -> None:
    """No hook, and no mode that substitutes parameters: a plain loss still has its gradient in the parameters."""
    assert not torch_module._global_forward_pre_hooks
    rng = torch.get_rng_state()
    twin = copy.deepcopy(problem.model)
    twin.zero_grad()
    twin(problem.gradient[0][0]).sum().backward()
    assert all(p.grad is not None for p in twin.parameters())
    torch.set_rng_state(rng)


# ---------------------------------------------------------------------- exceptions and interrupts


class FailAt:
    """Raises `error` at the k-th call; `fired` says whether it came to that."""

    def __init__(self, k: int, error: type[BaseException]) -> None:
        self.k, self.error, self.calls = k, error, 0

    @property
    def fired(self) -> bool:
        return self.calls >= self.k

    def __call__(self, *args: Any) -> None:
        self.calls += 1
        if self.calls == self.k:
            raise self.error(f"at call {self.k}")


def hook_before(problem: Problem, fail: FailAt) -> Any:
    return problem.model[0].register_forward_pre_hook(fail)


def hook_within(problem: Problem, fail: FailAt) -> Any:
    """After BatchNorm has moved its statistics and dropout has drawn its mask."""
    return problem.model[3].register_forward_hook(fail)


def hook_after(problem: Problem, fail: FailAt) -> Any:
    return problem.loss_func.register_forward_hook(fail)


@pytest.mark.parametrize("error", [DisturbanceError, KeyboardInterrupt])
@pytest.mark.parametrize("hook", [hook_before, hook_within, hook_after])
def test_an_exception_at_every_evaluation(way: str, hook: Callable[..., Any], error: type[BaseException]) -> None:
    expected = outcome_of_the_next_step(prepared(way), way)

    problem = prepared(way)
    before, record = problem.snapshot(), problem.opt.last_step
    fewest = {"step": 4, "acc_step": 12}[way]  # gradient, loss at θ, at least two trial points
    for k in range(1, 1000):
        fail = FailAt(k, error)
        handle = hook(problem, fail)
        try:
            undisturbed = outcome_of_the_next_step(problem, way)
        except error:
            assert differences(before, problem.snapshot()) == [], f"after {error.__name__} at evaluation {k}"
            assert problem.opt.last_step is record
            assert_nothing_left_behind(problem)
        finally:
            handle.remove()
        if not fail.fired:
            break
    assert k > fewest
    assert differences(expected, undisturbed) == []


@pytest.mark.parametrize(
    ("way", "curvature_opt", "error", "scale", "every"),
    [
        ("step", "ggn", KeyboardInterrupt, 1.0, 1),
        ("step", "ggn", RuntimeError, 1.1, 1),
        ("step", "hessian", RuntimeError, 1.2, 1),
        ("acc_step", "ggn", TypeError, 1.3, 3),
    ],
)
def test_an_exception_when_a_closure_is_seen_for_the_first_time(
    way: str, curvature_opt: str, error: type[BaseException], scale: float, every: int
) -> None:
    """A closure may be called more often then, to find out how to compute products with its curvature."""

    def fresh(k: int) -> Problem:
        """A problem with a loss function that nothing has seen before."""
        torch.manual_seed(11)
        problem = Problem(curvature_opt=curvature_opt, cg_max_iter=2)
        problem.loss_func.register_forward_hook(lambda module, args, loss: (scale + 1e-3 * k) * loss)
        return problem

    for k in range(1, 1000, every):
        problem, fail = fresh(k), FailAt(k, error)
        before = problem.snapshot()
        handle = hook_after(problem, fail)
        try:
            getattr(problem, way)()
        except error:
            assert differences(before, problem.snapshot()) == [], f"after {error.__name__} at call {k}"
            assert_nothing_left_behind(problem)
            continue
        finally:
            handle.remove()
        # Either there was no call k, or it was one that the step could do without.
        assert problem.opt.last_step.outcome is Outcome.ACCEPTED
        undisturbed = fresh(k)
        getattr(undisturbed, way)()
        for p, q in zip(problem.model.parameters(), undisturbed.model.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-7, atol=1e-9)
        if not fail.fired:
            break
    assert k > 4


@pytest.mark.parametrize("error", [DisturbanceError, KeyboardInterrupt])
@pytest.mark.parametrize("name", ["mvp", "M_func"])
def test_an_exception_at_every_product(name: str, error: type[BaseException]) -> None:
    scale = torch.linspace(0.5, 2.0, sum(p.numel() for p in network().parameters()), dtype=torch.float64)

    def next_step(problem: Problem, fail: FailAt) -> dict[str, Any]:
        def product(v: Tensor) -> Tensor:
            fail()
            return scale * v

        returned = problem.step(**{name: product})
        return {"returned": returned, "report": report(problem.opt), **values(problem.model, problem.opt)}

    expected = next_step(prepared("step"), FailAt(10**6, error))
    problem = prepared("step")
    before = problem.snapshot()
    for k in range(1, 1000):
        fail = FailAt(k, error)
        try:
            undisturbed = next_step(problem, fail)
        except error:
            assert differences(before, problem.snapshot()) == [], f"after {error.__name__} at product {k}"
        if not fail.fired:
            break
    assert k > 4
    assert differences(expected, undisturbed) == []


class InterruptAtLine:
    """A trace function that counts the lines executed in some files, and interrupts one of them.

    That is harder than an interrupt in a closure: it also hits the code that enters, leaves and cleans up.
    """

    MODULES = (
        latephase.optimizer,
        latephase.damped_optimizer,
        latephase.objective,
        latephase.parameters,
        latephase.trial_points,
        latephase.transaction,
        latephase.snapshots,
    )
    FILES = frozenset(module.__file__ for module in MODULES)

    def __init__(self, line: tuple[str, int] | None = None, occurrence: int = 0) -> None:
        self.line, self.occurrence = line, occurrence
        self.counts: Counter[tuple[str, int]] = Counter()

    def __call__(self, frame: Any, event: str, arg: Any) -> Any:
        if frame.f_code.co_filename not in self.FILES:
            return None
        if event == "line":
            here = frame.f_code.co_filename, frame.f_lineno
            self.counts[here] += 1
            if here == self.line and self.counts[here] == self.occurrence:
                raise KeyboardInterrupt
        return self

    def run(self, function: Callable[[], Any]) -> None:
        others = sys.gettrace()
        sys.settrace(self)
        try:
            function()
        finally:
            sys.settrace(others)


def test_an_interrupt_at_any_line(way: str) -> None:
    expected = outcome_of_the_next_step(prepared(way), way)
    whole_step = InterruptAtLine()
    problem = prepared(way)
    whole_step.run(getattr(problem, way))
    after = values(problem.model, problem.opt)
    del after["gradients"]
    assert len(whole_step.counts) > 150

    problem = prepared(way)
    before = problem.snapshot()
    for i, (line, count) in enumerate(whole_step.counts.items()):
        tracer = InterruptAtLine(line, occurrence=1 + i % count)
        where = f"after an interrupt at {Path(line[0]).name}:{line[1]}"
        with pytest.raises(KeyboardInterrupt):
            tracer.run(getattr(problem, way))
        assert_nothing_left_behind(problem)
        now = problem.snapshot()
        if differences(before, now):  # then the step was complete
            del now["places"], now["gradients"]  # .grad is for loggers, and may be of the step before
            assert differences(after, now) == [], where
            problem = prepared(way)
            before = problem.snapshot()
    assert differences(expected, outcome_of_the_next_step(problem, way)) == []


def test_an_exception_without_trainable_parameters_stays_what_it_is() -> None:
    problem = Problem()
    problem.model.requires_grad_(False)

    def forward() -> Tensor:
        raise DisturbanceError

    with pytest.raises(DisturbanceError):
        problem.opt.step(forward)


# ---------------------------------------------------------------------- numbers that are not finite


def with_nan(data: tuple[Tensor, Tensor], value: float = math.nan) -> tuple[Tensor, Tensor]:
    inputs, targets = data
    return inputs.index_fill(0, torch.tensor([1]), value), targets


def nan_gradient(problem: Problem) -> Callable[[], tuple[Tensor, Tensor]]:
    """A closure with a finite loss and a gradient that is 0/0."""

    def forward() -> tuple[Tensor, Tensor]:
        loss, outputs = problem.forward()
        return loss + (0.0 * problem.model[0].weight).sum().sqrt(), outputs

    return forward


def some_vector(problem: Problem, value: float) -> Tensor:
    vector = torch.ones(sum(p.numel() for p in problem.model.parameters()), dtype=torch.float64)
    vector[3] = value
    return vector


def lists(problem: Problem, name: str, value: float = math.nan) -> dict[str, Any]:
    """One of the lists of micro-batches with a bad number in its last micro-batch."""
    old = {"loss_datalist": problem.evaluation, "grad_datalist": problem.gradient, "mvp_datalist": problem.curvature}
    return {name: [*old[name][:-1], with_nan(old[name][-1], value)]}


TROUBLES: dict[str, tuple[str, Callable[[Problem], dict[str, Any]], Outcome]] = {
    "NaN in the model batch": (
        "step",
        lambda p: {"forward": closure(p.model, with_nan(p.gradient[0]))},
        Outcome.NON_FINITE_LOSS,
    ),
    "inf in the targets of the model batch": (
        "step",
        lambda p: {"forward": closure(p.model, (p.gradient[0][0], p.gradient[0][1] + math.inf))},
        Outcome.NON_FINITE_LOSS,
    ),
    "NaN in the evaluation batch": (
        "step",
        lambda p: {"evaluate": closure(p.model, with_nan(p.evaluation[0]))},
        Outcome.NON_FINITE_EVALUATION,
    ),
    "NaN in the gradient": ("step", lambda p: {"forward": nan_gradient(p)}, Outcome.NON_FINITE_GRADIENT),
    "NaN in the given gradient": ("step", lambda p: {"grad": some_vector(p, math.nan)}, Outcome.NON_FINITE_GRADIENT),
    "inf in the given gradient": ("step", lambda p: {"grad": some_vector(p, math.inf)}, Outcome.NON_FINITE_GRADIENT),
    "NaN in a given product": (
        "step",
        lambda p: {"mvp": lambda v: v * some_vector(p, math.nan)},
        Outcome.NON_FINITE_CURVATURE,
    ),
    "inf in a given product": (
        "step",
        lambda p: {"mvp": lambda v: v * some_vector(p, math.inf)},
        Outcome.NON_FINITE_CURVATURE,
    ),
    "NaN in the preconditioner": (
        "step",
        lambda p: {"M_func": lambda v: v * some_vector(p, math.nan)},
        Outcome.NON_FINITE_CURVATURE,
    ),
    "NaN in a micro-batch for the gradient": (
        "acc_step",
        lambda p: lists(p, "grad_datalist"),
        Outcome.NON_FINITE_LOSS,
    ),
    "NaN in a micro-batch for the curvature alone": (
        "acc_step",
        lambda p: lists(p, "mvp_datalist"),
        Outcome.NON_FINITE_CURVATURE,
    ),
    "NaN in a micro-batch for evaluation": (
        "acc_step",
        lambda p: lists(p, "loss_datalist"),
        Outcome.NON_FINITE_EVALUATION,
    ),
}


@pytest.mark.parametrize("trouble", TROUBLES)
def test_a_step_with_a_number_that_is_not_finite_is_undone(trouble: str) -> None:
    way, options, outcome = TROUBLES[trouble]
    expected = outcome_of_the_next_step(prepared(way), way)

    problem = prepared(way)
    before = problem.snapshot()
    with pytest.warns(StepUndoneWarning, match=re.escape(outcome.value)) as warned:
        returned = getattr(problem, way)(**options(problem))
    assert differences(before, problem.snapshot()) == []
    assert_nothing_left_behind(problem)

    assert Path(warned[0].filename).name == "contract.py"  # the line that called the step
    record = problem.opt.last_step
    assert type(returned) is float
    assert repr(returned) == repr(record.loss_after) == repr(record.loss_before)
    assert record.outcome is outcome
    assert record.outcome.undone
    assert record.next_damping == record.damping == problem.opt.param_groups[0]["damping"]
    assert record.step_size == record.step_norm == 0.0
    assert differences(expected, outcome_of_the_next_step(problem, way)) == []


def outside(problem: Problem) -> Callable[[], tuple[Tensor, Tensor]]:
    """A closure whose loss is finite only at the present parameters."""
    here = [p.detach().clone() for p in problem.model.parameters()]

    def evaluate() -> tuple[Tensor, Tensor]:
        loss, outputs = problem.evaluate()
        pairs = zip(problem.model.parameters(), here, strict=True)
        moved = torch.stack([((p - q) ** 2).sum() for p, q in pairs]).sum()
        return torch.where(moved > 0.0, math.inf, loss), outputs

    return evaluate


def test_a_loss_that_is_not_finite_after_the_step_is_undone_without_a_line_search() -> None:
    expected = outcome_of_the_next_step(prepared("step", use_linesearch=False), "step")
    problem = prepared("step", use_linesearch=False)
    before = problem.snapshot()
    with pytest.warns(StepUndoneWarning, match="after the step"):
        problem.step(evaluate=outside(problem))
    assert differences(before, problem.snapshot()) == []
    assert problem.opt.last_step.outcome is Outcome.NON_FINITE_STEP
    assert math.isfinite(problem.opt.last_step.loss_before)
    assert differences(expected, outcome_of_the_next_step(problem, "step")) == []


def test_a_loss_that_is_not_finite_at_all_trial_points_leaves_the_parameters() -> None:
    problem = prepared("step")
    before = problem.snapshot()
    returned = problem.step(evaluate=outside(problem))
    after, record = problem.snapshot(), problem.opt.last_step
    assert differences(before["parameters"], after["parameters"]) == []
    assert differences(before["places"], after["places"]) == []
    assert record.outcome is Outcome.NO_DECREASE
    assert returned == record.loss_after == record.loss_before
    assert record.next_damping == pytest.approx(1.5 * record.damping)
    assert not problem.opt.state[problem.model[0].weight]["cg_solution"].any()  # the failed direction is dropped
    problem.step()
    assert problem.opt.last_step.outcome is Outcome.ACCEPTED
    assert not problem.opt.last_step.warm_started


def test_products_that_are_not_finite_later_on_cost_no_more_than_the_later_iterates() -> None:
    for k in range(1, 6):
        problem = prepared("step", martens_conv_crit=False, cg_decay_x0=0.0)
        before = problem.snapshot()
        calls: Counter[str] = Counter()
        scale = torch.linspace(0.5, 2.0, some_vector(problem, 1.0).numel(), dtype=torch.float64)

        def product(v: Tensor, k: int = k, calls: Counter = calls, scale: Tensor = scale) -> Tensor:
            calls["products"] += 1
            return scale * v if calls["products"] < k else v * math.nan

        if k == 1:
            with pytest.warns(StepUndoneWarning):
                problem.step(mvp=product)
            assert differences(before, problem.snapshot()) == []
        else:
            problem.step(mvp=product)
            assert problem.opt.last_step.outcome is Outcome.ACCEPTED
            assert problem.opt.last_step.cg_iterations == k - 1
            assert problem.opt.last_step.loss_after < problem.opt.last_step.loss_before
        assert problem.opt.last_step.cg_stop is CGStop.NON_FINITE
        assert all(p.isfinite().all() for p in problem.model.parameters())


# ---------------------------------------------------------------------- nowhere to go


def test_a_zero_gradient(way: str) -> None:
    problem = prepared(way)

    def flat_loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return 3.0 + 0.0 * (outputs - targets).square().sum()

    for group in problem.opt.param_groups:
        group["weight_decay"] = 0.0
    before = problem.snapshot()
    if way == "step":
        returned = problem.step(forward=closure(problem.model, problem.gradient[0], flat_loss), evaluate=None)
    else:
        returned = problem.opt.acc_step(problem.model, flat_loss, problem.gradient)
    after, record = problem.snapshot(), problem.opt.last_step
    assert not any(p.grad.any() for p in problem.model.parameters())
    for part in ("parameters", "optimizer", "places"):
        assert differences(before[part], after[part]) == []
    assert record.outcome is Outcome.ZERO_GRADIENT
    assert returned == record.loss_before == record.loss_after == pytest.approx(3.0)
    assert record.grad_norm == 0.0
    assert record.counts.gradients == {"step": 1, "acc_step": 3}[way]
    assert outcome_of_the_next_step(problem, way)["report"]["grad_norm"] > 0.0


def test_a_zero_gradient_that_the_user_brings() -> None:
    problem = Problem()
    before = problem.snapshot()
    problem.step(grad=torch.zeros_like(some_vector(problem, 1.0)))
    assert problem.opt.last_step.outcome is Outcome.ZERO_GRADIENT
    assert problem.opt.last_step.loss_model is None
    assert differences(before["parameters"], problem.snapshot()["parameters"]) == []


@pytest.mark.parametrize("options", [{}, {"test_deterministic": True}])
def test_a_model_that_is_frozen_altogether(way: str, options: dict[str, Any]) -> None:
    expected = outcome_of_the_next_step(prepared(way), way)
    problem = prepared(way)
    problem.model.requires_grad_(False)
    before = problem.snapshot()
    with pytest.warns(StepUndoneWarning, match="no parameter requires a gradient"):
        returned = getattr(problem, way)(**options)
    assert differences(before, problem.snapshot()) == []
    record = problem.opt.last_step
    assert record.outcome is Outcome.NO_PARAMETERS
    assert returned == record.loss_before == record.loss_after
    assert math.isfinite(returned)
    assert record.cg_iterations == record.counts.gradients == record.counts.products == 0

    problem.model.requires_grad_(True)
    assert differences(expected, outcome_of_the_next_step(problem, way)) == []


class WithUnused(nn.Sequential):
    """The plain network, and parameters that its outputs do not depend on: before or behind the others."""

    def __init__(self, before: int, behind: int) -> None:
        layers = plain_network()
        if behind:
            layers[2].unused = nn.Parameter(torch.full((behind,), 3.0, dtype=torch.float64))
        super().__init__(*layers)
        if before:
            self.unused = nn.Parameter(torch.full((before,), 3.0, dtype=torch.float64))


@pytest.mark.parametrize("curvature_opt", ["ggn", "hessian"])
def test_unused_parameters_stay_as_they_are(way: str, curvature_opt: str) -> None:
    """All in one process: what is remembered of one network must not be taken for another's."""
    ends = []
    for before, behind in [(0, 0), (2, 0), (0, 2), (0, 5), (1, 1), (0, 0)]:
        problem = Problem(WithUnused(before, behind), curvature_opt=curvature_opt)
        for _ in range(3):
            getattr(problem, way)()
            assert problem.opt.last_step.outcome is Outcome.ACCEPTED
        parameters = dict(problem.model.named_parameters())
        unused = [parameters.pop(name) for name in list(parameters) if "unused" in name]
        assert [p.tolist() for p in unused] == [[3.0] * n for n in (before, behind) if n > 0]
        ends.append({name: p.detach() for name, p in parameters.items()})
    for end in ends[1:]:  # as if they were not there
        torch.testing.assert_close(end, ends[0], rtol=1e-9, atol=1e-12)


def test_a_layer_that_is_unfrozen_late(way: str) -> None:
    problem = Problem(plain_network())
    late = problem.model[0]
    late.requires_grad_(False)
    frozen = copy.deepcopy(late.state_dict())
    for _ in range(2):
        getattr(problem, way)()
    assert differences(frozen, late.state_dict()) == []
    assert problem.opt.last_step.warm_started

    late.requires_grad_(True)
    before = problem.snapshot()
    handle = hook_after(problem, FailAt(3, DisturbanceError))
    with pytest.raises(DisturbanceError):
        getattr(problem, way)()
    handle.remove()
    assert differences(before, problem.snapshot()) == []  # no state for the new layer either

    getattr(problem, way)()
    assert problem.opt.last_step.outcome is Outcome.ACCEPTED
    assert all(not torch.equal(frozen[name], p) for name, p in late.named_parameters())
    assert problem.opt.state[late.weight]["cg_solution"].shape == late.weight.shape


def test_a_layer_that_is_frozen_late(way: str) -> None:
    problem = Problem(plain_network())
    for _ in range(2):
        getattr(problem, way)()
    problem.model[0].requires_grad_(False)
    frozen = copy.deepcopy(problem.model[0].state_dict())
    getattr(problem, way)()
    assert problem.opt.last_step.outcome is Outcome.ACCEPTED
    assert differences(frozen, problem.model[0].state_dict()) == []


# ---------------------------------------------------------------------- what a good step leaves alone


def test_parameters_keep_their_storage(way: str) -> None:
    problem = prepared(way)
    before = problem.snapshot()
    for _ in range(3):
        getattr(problem, way)()
    after = problem.snapshot()
    assert differences(before["places"], after["places"]) == []
    assert len(differences(before["parameters"], after["parameters"])) == len(before["parameters"])  # all moved


def test_channels_last_weights_keep_their_strides() -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 3, 3), nn.Tanh(), nn.Conv2d(3, 2, 3), nn.Flatten()]
    model = nn.Sequential(*layers).double().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    contiguous = copy.deepcopy(model).to(memory_format=torch.contiguous_format)
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(6, 2, 6, 6, generator=generator, dtype=torch.float64)
    targets = torch.randn(6, 8, generator=generator, dtype=torch.float64)
    before = places(model)
    assert not model[0].weight.is_contiguous()
    assert contiguous[0].weight.is_contiguous()
    for net in (model, contiguous):
        opt = HessianFree(net.parameters())
        for _ in range(3):
            opt.step(closure(net, (inputs.to(memory_format=torch.channels_last), targets)))
            assert opt.last_step.outcome is Outcome.ACCEPTED
    assert places(model) == before
    for p, q in zip(model.parameters(), contiguous.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-8, atol=1e-10)


def test_no_reference_to_a_failed_step_is_kept() -> None:
    problem = prepared("step")

    class Activations:
        pass

    alive: list[weakref.ref[Activations]] = []

    def forward() -> Tensor:
        activations = Activations()
        alive.append(weakref.ref(activations))
        raise DisturbanceError

    with pytest.raises(DisturbanceError):
        problem.step(forward=forward)
    gc.collect()
    assert [reference() for reference in alive] == [None]


# ---------------------------------------------------------------------- GradScaler


def test_a_gradient_scaler_is_refused_and_nothing_is_lost() -> None:
    expected = outcome_of_the_next_step(prepared("step"), "step")
    problem = prepared("step")
    before, attributes = problem.snapshot(), set(vars(problem.opt))
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(torch.ones(()))
    with pytest.raises(RuntimeError, match=r"HessianFree needs no GradScaler.*call opt\.step\(forward\)"):
        scaler.step(problem.opt, problem.forward)
    assert differences(before, problem.snapshot()) == []
    assert set(vars(problem.opt)) == attributes
    assert differences(expected, outcome_of_the_next_step(problem, "step")) == []


def test_a_disabled_gradient_scaler_passes_the_step_on() -> None:
    expected, problem = prepared("step"), prepared("step")
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    torch.manual_seed(0)
    scaler.step(problem.opt, problem.forward, evaluate=problem.evaluate)
    torch.manual_seed(0)
    expected.step()
    assert differences(values(expected.model, expected.opt), values(problem.model, problem.opt)) == []
