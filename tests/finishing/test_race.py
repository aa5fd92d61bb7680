"""Who gets what of a budget, with strategies whose prices and gains are made up: one weight, which is the score."""

from dataclasses import dataclass

import pytest
import torch
from tests.finishing.tasks import examples
from torch import nn
from torch.nn.functional import cross_entropy

from latephase.finishing.candidates import Candidate
from latephase.finishing.promise import Growth
from latephase.finishing.race import Race
from latephase.finishing.task import task_of
from latephase.strategies.strategy import Step
from latephase.strategies.trainer import NetworkTrainer
from latephase.tasks.split import Data, Split

GRADIENTS = 1000.0  # that the budget is worth
START = 1.0


@dataclass
class Steps:
    """Its steps cost `price` gradients each and divide the weight by `ratio`, though not below `bottom`."""

    price: float
    ratio: float = 1.0
    bottom: float = 0.0

    def start(self, task, model, data, generator):
        def step(spent):
            with torch.no_grad():
                weight = next(model.parameters())
                weight.copy_((weight / self.ratio).clamp(min=min(self.bottom, weight.item())))
            return Step(gradients=self.price)

        return NetworkTrainer(step, model)


def steps(name, price, ratio=1.0, bottom=0.0, **options):
    def build(means):
        means.require(price)
        return Steps(price, ratio, bottom)

    options = {"growth": Growth.POWER, "trials": (0.02,), "from_best": True, **options}
    return Candidate(name, build=build, **options)


def decay(price=1.0, **options):
    return steps("decay", price, growth=Growth.LENGTH, trials=(0.01, 0.02), restarts=True, from_best=False, **options)


def run(*candidates, already=0.0):
    """Race to the end with a clock that counts gradients, a part of the budget being gone before the first step."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, START)
    task, split = task_of(cross_entropy, None, 10, closure=False), Split(*examples(20))
    race = Race(
        task, model, Data(split, split), torch.Generator(), candidates,
        lambda network: next(network.parameters()).item(), GRADIENTS,
    )  # fmt: skip
    spent = already
    while not race.over:
        step = race.step(spent)
        if step is not None:
            spent += step.gradients / GRADIENTS
            race.took(step, spent)
        assert len(race.phases) < 100
    return race, spent


def summary(race):
    return [(phase.candidate, phase.trial, phase.steps > 0) for phase in race.phases]


def test_what_was_too_dear_for_a_trial_gets_what_nothing_else_is_worth():
    """Steps that come to their end, with nine tenths of the budget left, leave them to what may gain more."""
    race, spent = run(steps("cheap", 5.0, 2.0, bottom=0.5), steps("dear", 400.0, 100.0))
    assert ("dear", True, False) in summary(race)  # the trial has said what a step costs
    assert summary(race)[-1] == ("dear", False, True)
    assert race.phases[-1].reason == "no trial of it fitted, and nothing promises more"
    assert race.best_by == "dear"
    assert race.best_score == pytest.approx(0.5 / 100.0**2)
    assert not race.ended_early
    assert spent <= 1.0


def test_what_costs_more_than_is_left_is_not_begun():
    race, spent = run(steps("cheap", 5.0, 2.0, bottom=0.5), steps("dear", 990.0, 100.0))
    assert (race.best_by, race.best_score) == ("cheap", 0.5)
    assert ("dear", True, False) in summary(race)
    assert all(candidate == "cheap" for candidate, _, took in summary(race) if took)
    assert spent > 0.99


def test_where_no_trial_fits_the_first_is_reviewed_and_the_others_follow():
    """Judging took more than the trials may, so none is made: then nobody knows that the first is the best."""
    race, _ = run(steps("first", 5.0, 2.0, bottom=0.5), steps("second", 50.0, 100.0), decay(), already=0.2)
    assert summary(race)[0] == ("first", False, True)
    assert race.phases[0].end == pytest.approx(0.3, abs=0.01)
    assert race.best_by == "second"
    assert race.best_score < 1e-6


def test_one_alone_gets_all():
    race, spent = run(steps("alone", 400.0, 2.0))
    assert summary(race) == [("alone", False, True)]
    assert race.phases[0].reason == "the only one"
    assert race.best_score == 0.25
    assert spent == pytest.approx(0.8)


def test_a_decay_of_which_nothing_is_known_is_not_broken_off():
    race, spent = run(decay(5.0, ratio=1.01), already=0.3)
    assert summary(race) == [("decay", False, True)]
    assert spent == pytest.approx(1.0, abs=0.01)


def test_no_trial_is_judged_without_a_step():
    """Building a strategy may take longer than its trial; then one step says more than none."""
    slow = steps("slow", 30.0, 10.0)
    race, _ = run(steps("other", 5.0, 1.5, bottom=0.9), slow)
    assert all(phase.steps for phase in race.phases if phase.points)
    assert race.best_by == "slow"


def test_a_strategy_that_fails_is_never_the_last_resort():
    def broken(means):
        raise ArithmeticError("no")

    failing = Candidate("failing", Growth.POWER, (0.02,), broken, from_best=True)
    race, spent = run(steps("cheap", 5.0, 2.0, bottom=0.5), failing)
    assert [phase.candidate for phase in race.phases].count("failing") == 1
    assert race.best_score == 0.5
    assert spent > 0.99


@pytest.mark.parametrize("averaging_first", [True, False])
def test_the_order_says_who_comes_first_where_nothing_promises_more(averaging_first):
    """With noise an average goes before steps of which nothing is known, without it is the reverse."""
    average = steps("average", 5.0, growth=Growth.AVERAGE, trials=(0.01,), from_best=False)
    dear = steps("dear", 300.0, 100.0)
    cheap = steps("cheap", 5.0, 2.0, bottom=0.5)
    race, _ = run(*((average, cheap, dear) if averaging_first else (dear, cheap, average)))
    rest = [phase.candidate for phase in race.phases if not phase.trial]
    assert rest[:2] == ["cheap", "average" if averaging_first else "dear"]
