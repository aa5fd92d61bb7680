"""K-FAC as a strategy: the objective with its L2 term, a rate that falls to zero, and options that are checked."""

import pytest
import torch
from tests.study.toy import TOY, build_model, load_data

from latephase.kfac import KFAC
from latephase.strategies.kfac import Kronecker
from latephase.tasks.batches import endless
from latephase.tasks.task import add_l2_gradient


def test_its_steps_are_those_of_the_optimizer_on_the_objective():
    models = []
    for _ in range(2):
        torch.manual_seed(0)
        models.append(build_model())
    model, by_hand = models
    trainer = Kronecker("mine", options={"lr": 0.01}).start(TOY, model, load_data(), torch.Generator().manual_seed(1))
    optimizer, stream = KFAC(by_hand, lr=0.01), endless(load_data(), TOY.batch_size, torch.Generator().manual_seed(1))
    for spent in (0.0, 0.5):
        step = trainer.step(spent)
        batch = next(stream)
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * (1.0 - spent)

        def closure(batch=batch):
            optimizer.zero_grad()
            loss, _ = TOY.forward(by_hand, batch)
            loss.backward()
            add_l2_gradient(TOY.parameter_groups(by_hand))
            return loss

        optimizer.step(closure)
        assert step.lr == pytest.approx(0.01 * (1.0 - spent))
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), by_hand.parameters(), strict=True))
    assert TOY.weight_decay > 0.0


def test_options_are_checked_when_it_is_made():
    with pytest.raises(ValueError, match="damping"):
        Kronecker("mine", options={"damping": -1.0})
    with pytest.raises(TypeError, match="nesterov"):
        Kronecker("mine", options={"nesterov": True})
