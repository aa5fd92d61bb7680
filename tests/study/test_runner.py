from dataclasses import dataclass, field, replace

import pytest
import torch
from tests.study.toy import TOY, build_model, load_data, silent
from torch import nn

from latephase.study import runner
from latephase.study.clock import Clock
from latephase.study.evaluation import Point
from latephase.study.runner import Run, resume
from latephase.study.strategies import HF_EQUAL, SGD_CONSTANT, Strategy


@dataclass
class Time:
    """A time that passes only in steps and evaluations."""

    now: float = 0.0


@dataclass
class Counting:
    """A strategy that adds 1 to all parameters and takes as long as it is told."""

    time: Time
    durations: list
    spent: list = field(default_factory=list)
    name: str = "counting"

    def start(self, problem, model, train, generator):
        def step(spent):
            self.spent.append(spent)
            self.time.now += self.durations.pop(0)
            with torch.no_grad():
                for p in model.parameters():
                    p += 1

        return step


@pytest.fixture
def time(monkeypatch):
    """Replace the clock's time, and measure nothing but the parameters; each measurement takes 100 s."""
    time = Time()

    def evaluate(problem, model, data, *, seconds, steps):
        time.now += 100
        return Point(seconds, steps, next(model.parameters()).mean().item(), 0.0, 0.0)

    monkeypatch.setattr(runner, "Clock", lambda device: Clock(device, now=lambda: time.now))
    monkeypatch.setattr(runner, "evaluate", evaluate)
    return time


def run(strategy, budget):
    state = {name: torch.zeros_like(value) for name, value in build_model().state_dict().items()}
    return resume(TOY, load_data(), state, strategy, budget=budget, seed=0, progress=silent)


def test_the_step_in_which_the_budget_runs_out_is_taken_back(time):
    strategy = Counting(time, [3.0, 3.0, 3.0, 3.0])
    curve = run(strategy, budget=10.0).curve
    assert [(p.seconds, p.steps, p.train_loss) for p in curve] == [(0, 0, 0), (3, 1, 1), (6, 2, 2), (9, 3, 3)]
    assert strategy.spent == pytest.approx([0.0, 0.3, 0.6, 0.9])


def test_a_step_that_ends_with_the_budget_counts(time):
    curve = run(Counting(time, [5.0, 5.0, 5.0]), budget=10.0).curve
    assert [(p.seconds, p.steps) for p in curve] == [(0, 0), (5, 1), (10, 2)]


def test_a_first_step_beyond_the_budget_leaves_the_checkpoint(time):
    curve = run(Counting(time, [11.0]), budget=10.0).curve
    assert [(p.seconds, p.steps, p.train_loss) for p in curve] == [(0, 0, 0)]


def test_evaluations_are_spaced_equally_and_the_last_state_is_among_them(time):
    curve = run(Counting(time, [1.0] * 1001), budget=1000.0).curve
    assert [p.steps for p in curve] == list(range(0, 1001, 50))

    curve = run(Counting(time, [1.0] * 1001), budget=999.5).curve
    assert len(curve) == runner.EVALUATIONS + 1
    assert curve[-1].steps == curve[-1].train_loss == 999


def test_a_run_keeps_the_best_of_its_curve():
    curve = [Point(0, 0, 0.5, 0.0, 0.7), Point(1, 1, 0.2, 0.0, 0.9), Point(2, 2, 0.4, 0.0, 0.8)]
    best = Run("name", 0, tuple(curve))
    assert (best.best_train_loss, best.best_test_accuracy) == (0.2, 0.9)


def test_progress_ends_with_the_run(time):
    fractions = []
    state = build_model().state_dict()
    strategy = Counting(time, [4.0, 4.0, 4.0])
    resume(TOY, load_data(), state, strategy, budget=10.0, seed=0, progress=lambda f, _: fractions.append(f))
    assert fractions == pytest.approx([0.0, 0.4, 0.8, 1.0])


@dataclass
class OneSecondSteps:
    """A real strategy whose steps take one second of the clock."""

    strategy: Strategy
    time: Time
    name: str = "timed"

    def start(self, problem, model, train, generator):
        step = self.strategy.start(problem, model, train, generator)

        def timed(spent):
            step(spent)
            self.time.now += 1

        return timed


@pytest.mark.parametrize("strategy", [SGD_CONSTANT, HF_EQUAL], ids=["sgd", "hf"])
def test_steps_depend_on_nothing_but_checkpoint_and_seed(time, strategy):
    torch.manual_seed(0)
    state = build_model().state_dict()

    def losses(seed):
        torch.rand(seed + 5)  # whatever was drawn before
        timed = OneSecondSteps(strategy, time)
        run = resume(WITH_DROPOUT, load_data(), state, timed, budget=5.0, seed=seed, progress=silent)
        return [p.train_loss for p in run.curve]

    assert losses(1) == losses(1)
    assert losses(1)[0] == losses(2)[0]
    assert losses(1)[-1] != losses(2)[-1]


def model_with_dropout():
    return nn.Sequential(*build_model(), nn.Dropout(0.2))


WITH_DROPOUT = replace(TOY, build_model=model_with_dropout)
