import math
from dataclasses import dataclass, field, replace

import pytest
import torch
from tests.study.toy import TOY, build_model, load_data, silent
from torch import nn

from latephase.strategies.first_order import SGD_CONSTANT
from latephase.strategies.hf import hf_equal
from latephase.strategies.strategy import Family, NothingLeftError, Step, Strategy, Trainer
from latephase.strategies.swa import SWA
from latephase.strategies.trainer import copied_state
from latephase.study.runs import evaluation, runner
from latephase.study.runs.budget import Allowance
from latephase.study.runs.clock import Clock
from latephase.study.runs.evaluation import Quality
from latephase.study.runs.runner import resume


@dataclass
class Time:
    """A time that passes only in steps and evaluations."""

    now: float = 0.0


@dataclass
class Counting:
    """A strategy that adds 1 to all parameters and takes as long, and as much work, as it is told."""

    time: Time
    durations: list
    spent: list = field(default_factory=list)
    name: str = "counting"

    def start(self, problem, model, data, generator):
        self.network = model
        return self

    def judged(self):
        return self.network

    def snapshot(self):
        return copied_state(self.network)

    def restore(self, snapshot):
        self.network.load_state_dict(snapshot)

    def step(self, spent):
        self.spent.append(spent)
        duration = self.durations.pop(0)
        self.time.now += duration
        with torch.no_grad():
            for p in self.network.parameters():
                p += 1
        return Step(2 * duration, lr=float(len(self.spent)))


@pytest.fixture
def time(monkeypatch):
    """Replace the clock's time, and measure nothing but the parameters; each measurement takes 100 s."""
    time = Time()

    def evaluate(problem, model, data):
        time.now += 100
        return Quality(next(model.parameters()).mean().item(), 0.0, 0.0, 0.0)

    monkeypatch.setattr(runner, "Clock", lambda device: Clock(device, now=lambda: time.now))
    monkeypatch.setattr(evaluation, "evaluate", evaluate)
    return time


def run(strategy, budget, unit="seconds", progress=silent):
    state = {name: torch.zeros_like(value) for name, value in build_model().state_dict().items()}
    return resume(TOY, load_data(), state, strategy, allowance=Allowance(budget, unit), seed=0, progress=progress)


def test_the_step_in_which_the_budget_runs_out_is_taken_back(time):
    strategy = Counting(time, [3.0, 3.0, 3.0, 3.0])
    curve = run(strategy, budget=10.0).curve
    assert [(p.seconds, p.steps, p.train_loss) for p in curve] == [(0, 0, 0), (3, 1, 1), (6, 2, 2), (9, 3, 3)]
    assert [p.gradients for p in curve] == [0, 6, 12, 18]
    assert math.isnan(curve[0].lr)
    assert [p.lr for p in curve[1:]] == [1, 2, 3]
    assert strategy.spent == pytest.approx([0.0, 0.3, 0.6, 0.9])


def test_a_budget_of_work_does_not_look_at_the_clock(time):
    strategy = Counting(time, [3.0, 30.0, 3.0])
    curve = run(strategy, budget=70.0, unit="gradients").curve
    assert [(p.gradients, p.steps, p.train_loss) for p in curve] == [(0, 0, 0), (6, 1, 1), (66, 2, 2)]
    assert strategy.spent == pytest.approx([0.0, 6 / 70, 66 / 70])


def test_a_step_that_ends_with_the_budget_counts(time):
    curve = run(Counting(time, [5.0, 5.0, 5.0]), budget=10.0).curve
    assert [(p.seconds, p.steps) for p in curve] == [(0, 0), (5, 1), (10, 2)]


class Ending(Counting):
    """The same, but after its last duration nothing is left to do; and it wants to know its seconds."""

    told = None

    def within(self, seconds):
        self.told = seconds
        return self

    def step(self, spent):
        if not self.durations:
            raise NothingLeftError
        return super().step(spent)


def test_a_run_with_nothing_left_to_do_ends_before_its_budget(time):
    curve = run(Ending(time, [1.0, 1.0]), budget=1000.0).curve
    assert [(p.seconds, p.steps, p.train_loss) for p in curve] == [(0, 0, 0), (2, 2, 2)]


def test_a_strategy_is_told_its_seconds_where_there_are_any(time):
    one, other = Ending(time, []), Ending(time, [])
    run(one, budget=9.0)
    run(other, budget=9.0, unit="gradients")
    assert (one.told, other.told) == (9.0, None)


def test_a_first_step_beyond_the_budget_leaves_the_checkpoint(time):
    curve = run(Counting(time, [11.0]), budget=10.0).curve
    assert [(p.seconds, p.steps, p.train_loss) for p in curve] == [(0, 0, 0)]


def test_evaluations_are_spaced_equally_and_the_last_state_is_among_them(time):
    curve = run(Counting(time, [1.0] * 1001), budget=1000.0).curve
    assert [p.steps for p in curve] == list(range(0, 1001, 50))

    curve = run(Counting(time, [1.0] * 1001), budget=999.5).curve
    assert len(curve) == runner.EVALUATIONS + 1
    assert curve[-1].steps == curve[-1].train_loss == 999


def test_a_run_that_diverges_ends_there(time, monkeypatch):
    monkeypatch.setattr(evaluation, "evaluate", lambda problem, model, data: Quality(math.nan, 0.0, math.nan, 0.1))
    curve = run(Counting(time, [1.0] * 1001), budget=1000.0).curve
    assert len(curve) == 1
    assert math.isnan(curve[0].train_loss)


@pytest.mark.parametrize("absurd", [1e298, -1e298])
def test_a_run_whose_loss_is_finite_but_absurd_ends_there_too(time, monkeypatch, absurd):
    losses = iter([0.5, 4e5, absurd, 0.5])
    monkeypatch.setattr(evaluation, "evaluate", lambda problem, model, data: Quality(next(losses), 0.0, 0.0, 0.1))
    remarks = []
    curve = run(
        Counting(time, [1.0] * 1001), budget=1000.0, progress=lambda fraction, remark: remarks.append(remark)
    ).curve
    assert [p.train_loss for p in curve] == [0.5, 4e5, absurd]
    assert remarks[-1] == f"train loss {absurd:.3e}"


def test_progress_ends_with_the_run(time):
    fractions = []
    run(Counting(time, [4.0, 4.0, 4.0]), budget=10.0, progress=lambda f, _: fractions.append(f))
    assert fractions == pytest.approx([0.0, 0.4, 0.8, 1.0])


@dataclass
class OneSecondSteps:
    """A real strategy whose steps take one second of the clock."""

    strategy: Strategy
    time: Time
    trainer: Trainer | None = None
    name = "one second a step"
    family = Family.FIRST_ORDER

    def settings(self):
        return {}

    def start(self, problem, model, data, generator):
        self.trainer = self.strategy.start(problem, model, data, generator)
        return self

    def judged(self):
        return self.trainer.judged()

    def snapshot(self):
        return self.trainer.snapshot()

    def restore(self, snapshot):
        self.trainer.restore(snapshot)

    def step(self, spent):
        self.time.now += 1
        return self.trainer.step(spent)


def model_with_dropout():
    return nn.Sequential(*build_model(), nn.Dropout(0.2))


@pytest.mark.parametrize("strategy", [SGD_CONSTANT, SWA(every=2), hf_equal(TOY)], ids=["sgd", "swa", "hf"])
@pytest.mark.parametrize("allowance", [Allowance(5.0, "seconds"), Allowance(40.0, "gradients")], ids=str)
def test_steps_depend_on_nothing_but_checkpoint_and_seed(time, strategy, allowance):
    torch.manual_seed(0)
    state = build_model().state_dict()
    problem = replace(TOY, build_model=model_with_dropout)

    def losses(seed):
        torch.rand(seed + 5)  # whatever was drawn before
        timed = OneSecondSteps(strategy, time)
        run = resume(problem, load_data(), state, timed, allowance=allowance, seed=seed, progress=silent)
        return [p.train_loss for p in run.curve]

    assert losses(1) == losses(1)
    assert losses(1)[0] == losses(2)[0]
    assert losses(1)[-1] != losses(2)[-1]


def test_records_are_those_of_the_steps_that_count():
    torch.manual_seed(0)
    state = build_model().state_dict()
    run = resume(
        TOY, load_data(), state, hf_equal(TOY), allowance=Allowance(100.0, "gradients"), seed=0, progress=silent
    )
    assert len(run.records) == run.curve[-1].steps > 1
    work = sum(r.counts.losses * 20 / 3 + 16 + (1 + r.counts.products) * 16 for r in run.records) / TOY.batch_size
    assert run.curve[-1].gradients == pytest.approx(work)
    assert run.curve[-1].gradients <= 100.0
