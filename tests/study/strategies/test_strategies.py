"""What holds for strategies of every family: the objective, what is frozen, settings that tell them apart."""

from dataclasses import replace

import pytest
import torch
from tests.study.strategies.twins import generator, twins
from tests.study.toy import TOY, load_data
from torch import nn

from latephase.strategies.hf import HF, hf_equal
from latephase.strategies.swa import SWA
from latephase.study.runs.evaluation import evaluate
from latephase.study.strategies.catalogue import default_strategies, find_strategy

PEERS = ["adam_cosine(lr=0.01)", "muon_cosine(lr=0.01)", "scipy_lbfgs", "ssbroyden"]
EVERY = [*(s.name for s in default_strategies(TOY, 60)), "hf_m12", "hf_equal", "adamw(lr=0.01)", *PEERS]


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("frozen", ["1", "3", "1.weight 3.weight", "1.bias 3.bias"])
def test_frozen_parameters_stay_where_they_are_and_the_others_are_trained(name, frozen):
    model, twin = twins()
    for part in frozen.split():
        at = model.get_parameter(part) if "." in part else model.get_submodule(part)
        at.requires_grad_(False)
    trainer = find_strategy(name, TOY, 60).start(TOY, model, load_data(), generator())
    before = evaluate(TOY, model, load_data()).train_loss
    for _ in range(10):
        trainer.step(0.0)
    for judged in (model, trainer.judged()):
        for p, q in zip(judged.parameters(), twin.parameters(), strict=True):
            assert torch.equal(p, q) != p.requires_grad
    assert evaluate(TOY, trainer.judged(), load_data()).train_loss < before


def test_frozen_weights_are_not_in_the_objective():
    """Else the train loss of the curves were not what a Hessian-free step compares."""
    model, _ = twins()
    model[1].requires_grad_(False)
    assert TOY.l2_term(model) == pytest.approx(0.5 * TOY.weight_decay * model[3].weight.square().sum().item())
    everything = replace(TOY, curvature_batch=30, gradient_batch=60, evaluation_batch=30)
    problem = HF("hf", 60, 60, 0, same=True).start(everything, model, load_data(), generator())
    before = evaluate(TOY, model, load_data()).train_loss
    assert problem.step(0.0).record.loss_before == pytest.approx(before)


@pytest.mark.parametrize("name", ["sgd_constant", "adagrad", "lbfgs", "scipy_lbfgs", "ssbroyden"])
def test_the_l2_term_covers_a_weight_that_the_loss_does_not_depend_on(name):
    model, _ = twins()
    model.register_parameter("unused", nn.Parameter(torch.ones(2, 2, dtype=torch.float64)))
    find_strategy(name, TOY, 60).start(TOY, model, load_data(), generator()).step(0.0)
    assert (model.unused < 1).all()


@pytest.mark.parametrize("strategy", default_strategies(TOY, 60), ids=lambda strategy: strategy.name)
def test_every_strategy_trains_a_network_whose_weights_are_channels_last(strategy):
    def build():
        layers = nn.Conv2d(1, 4, 2, padding=1), nn.Tanh(), nn.Conv2d(4, 3, 3), nn.Flatten()
        return nn.Sequential(*layers).double().to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    torch.manual_seed(0)
    model, data = build(), load_data()
    trainer = strategy.start(TOY, model, data, generator())
    before = evaluate(TOY, model, data).train_loss
    for _ in range(10):
        trainer.step(0.0)
    assert evaluate(TOY, trainer.judged(), data).train_loss < before


def test_settings_tell_strategies_apart():
    all_settings = [str(s.settings()) for s in (*default_strategies(TOY, 50_000), SWA(every=3), hf_equal(TOY))]
    assert len(set(all_settings)) == len(all_settings)
