"""SGD and other optimizers by name, beside steps written out."""

import pytest
import torch
from tests.study.strategies.twins import assert_same, generator, objective, twins
from tests.study.toy import TOY, load_data
from torch import nn

from latephase.strategies.first_order import SGD_CONSTANT, SGD_COSINE, SGD_PLATEAU, SGD_TENTH
from latephase.strategies.schedules import cosine
from latephase.study.strategies.catalogue import find_strategy
from latephase.tasks import batches


@pytest.mark.parametrize(
    ("strategy", "learning_rates"),
    [
        (SGD_CONSTANT, [0.5, 0.5, 0.5]),
        (SGD_TENTH, [0.05, 0.05, 0.05]),
        (SGD_COSINE, [0.5, 0.25, 0.0]),
        (SGD_PLATEAU, [0.5, 0.5, 0.5]),
    ],
)
def test_sgd_steps_down_the_gradient_of_the_objective(strategy, learning_rates):
    model, twin = twins()
    data = load_data()
    trainer = strategy.start(TOY, model, data, generator())
    stream = batches.endless(data, TOY.batch_size, generator())
    for spent, lr in zip((0.0, 0.5, 1.0), learning_rates, strict=True):
        step = trainer.step(spent)
        assert (step.gradients, step.record) == (1.0, None)
        assert step.lr == pytest.approx(lr, abs=1e-12)
        grads = torch.autograd.grad(objective(twin, next(stream)), list(twin.parameters()))
        with torch.no_grad():
            for p, g in zip(twin.parameters(), grads, strict=True):
                p -= lr * g
        assert_same(model, twin)


def test_any_optimizer_minimises_the_same_objective():
    model, twin = twins()
    data = load_data()
    trainer = find_strategy("adamw(lr=0.01, weight_decay=0.0, schedule=cosine)", TOY, 60).start(
        TOY, model, data, generator()
    )
    adam = torch.optim.Adam(twin.parameters(), lr=0.01)
    stream = batches.endless(data, TOY.batch_size, generator())
    for spent in (0.0, 0.3, 0.6):
        trainer.step(spent)
        adam.param_groups[0]["lr"] = 0.01 * cosine()(spent, None)
        adam.zero_grad()
        objective(twin, next(stream)).backward()
        adam.step()
        assert_same(model, twin)


def test_an_optimizer_that_wants_a_graph_of_the_gradients_is_refused():
    pytest.importorskip("pytorch_optimizer")

    def build():
        return nn.Sequential(nn.Flatten(), nn.Linear(4, 3, bias=False)).double()

    model, _ = twins(build)
    trainer = find_strategy("sophiah(lr=0.01)", TOY, 60).start(TOY, model, load_data(), generator())
    with pytest.raises(RuntimeError, match="does not require grad"):
        trainer.step(0.0)
