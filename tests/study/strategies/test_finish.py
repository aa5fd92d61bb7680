import math

import pytest
import torch
from tests.study.toy import TOY, build_model, load_data, silent

from latephase.finishing.candidates import STRATEGIES
from latephase.strategies.strategy import NothingLeftError, WithinSeconds
from latephase.study.runs.budget import Allowance
from latephase.study.runs.runner import resume
from latephase.study.strategies.catalogue import find_strategy
from latephase.study.strategies.finish import Finish

DATA = load_data()


def checkpoint():
    torch.manual_seed(0)
    return build_model().state_dict()


def run(strategy, amount=2000.0, unit="gradients", seed=0):
    allowance = Allowance(amount, unit)
    return resume(TOY, DATA, checkpoint(), strategy, allowance=allowance, seed=seed, progress=silent)


def test_what_is_judged_never_gets_worse():
    losses = [point.train_loss for point in run(Finish()).curve]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0]


def test_it_ends_as_well_as_the_best_of_its_strategies_alone():
    alone = [run(Finish(strategies=(name,))).curve[-1].train_loss for name in STRATEGIES]
    assert run(Finish()).curve[-1].train_loss <= 1.05 * min(alone)


def test_steps_of_hessian_free_are_recorded():
    assert run(Finish(strategies=("hessian-free",))).records
    assert not run(Finish(strategies=("decay",))).records


def test_the_decay_ends_with_the_budget():
    curve = run(Finish(strategies=("decay",))).curve
    assert curve[-1].lr < 0.01 * curve[1].lr
    assert curve[-1].gradients > 0.98 * 2000


def test_it_wants_to_know_its_seconds():
    strategy = Finish()
    assert isinstance(strategy, WithinSeconds)
    assert strategy.within(3.0) == Finish(seconds=3.0)
    assert strategy.within(3.0).settings() == strategy.settings()
    assert run(strategy, 0.5, "seconds").curve[-1].train_loss < math.inf


def test_a_run_with_nothing_left_to_do_ends():
    trainer = Finish(strategies=("l-bfgs",)).start(TOY, build_model(), DATA, torch.Generator().manual_seed(0))

    def all_of_them():
        for number in range(10000):
            trainer.step(number / 5000)

    with pytest.raises(NothingLeftError):
        all_of_them()


def test_the_first_optimizer_goes_on(monkeypatch):
    rates = []
    for phase in ("sgd_constant(lr=0.25)", "adam(lr=0.125)"):
        monkeypatch.setitem(vars(TOY), "first_phase", phase)
        rates.append(run(Finish(strategies=("averaging",))).curve[1].lr)
    assert rates == [0.25, 0.125]


@pytest.mark.parametrize(("options", "said"), [("strategies=['sgd']", "decay"), ("strategies=[]", "at least one of")])
def test_what_it_refuses(options, said):
    with pytest.raises(ValueError, match=said):
        find_strategy(f"finish({options})", TOY, 60)
