from dataclasses import replace

import pytest
import torch
from tests.study.toy import TOY, build_model, load_data

from latephase import HessianFree
from latephase.study import batches, strategies
from latephase.study.strategies import HF_EQUAL, HF_LARGE, SGD_CONSTANT, SGD_COSINE, SGD_TENTH


def generator():
    return torch.Generator().manual_seed(3)


def twins():
    torch.manual_seed(0)
    model = build_model()
    twin = build_model()
    twin.load_state_dict(model.state_dict())
    return model, twin


def assert_same(model, twin, **tolerances):
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, **tolerances)


def test_cosine_is_the_schedule_of_that_name():
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=50)
    for step in range(51):
        assert strategies.cosine(step / 50) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-12)
        optimizer.step()
        schedule.step()


@pytest.mark.parametrize(
    ("strategy", "learning_rates"),
    [
        (SGD_CONSTANT, [0.5, 0.5, 0.5]),
        (SGD_TENTH, [0.05, 0.05, 0.05]),
        (SGD_COSINE, [0.5, 0.25, 0.0]),
    ],
)
def test_sgd_steps_down_the_gradient_of_the_objective(strategy, learning_rates):
    model, twin = twins()
    data = load_data().train
    step = strategy.start(TOY, model, data, generator())
    stream = batches.endless(data, TOY.batch_size, generator())
    for spent, lr in zip((0.0, 0.5, 1.0), learning_rates, strict=True):
        step(spent)
        batch = next(stream)
        weights = [p for name, p in twin.named_parameters() if name.endswith("weight")]
        penalty = 0.5 * TOY.weight_decay * sum((w**2).sum() for w in weights)
        objective = TOY.loss(twin(batch.inputs), batch.targets) + penalty
        gradient = torch.autograd.grad(objective, list(twin.parameters()))
        with torch.no_grad():
            for p, g in zip(twin.parameters(), gradient, strict=True):
                p -= lr * g
        assert_same(model, twin)


@pytest.mark.parametrize(("strategy", "gradient"), [(HF_EQUAL, 16), (HF_LARGE, 32)])
@pytest.mark.parametrize("chunk", [2048, 7])
def test_hf_is_the_optimizer_on_the_batches_drawn(strategy, gradient, chunk, monkeypatch):
    monkeypatch.setattr(strategies, "_CHUNK", chunk)
    model, twin = twins()
    data = load_data().train
    step = strategy.start(TOY, model, data, generator())
    optimizer = HessianFree(TOY.parameter_groups(twin))
    stream = batches.hessian_free(data, curvature=16, gradient=gradient, evaluation=20, generator=generator())
    for _ in range(3):
        step(0.0)
        curvature, gradient_only, evaluation = next(stream)
        union = (
            torch.cat([curvature.inputs, gradient_only.inputs]),
            torch.cat([curvature.targets, gradient_only.targets]),
        )
        optimizer.acc_step(
            twin,
            TOY.loss,
            loss_datalist=[(evaluation.inputs, evaluation.targets)],
            grad_datalist=[union],
            mvp_datalist=[(curvature.inputs, curvature.targets)],
        )
        assert_same(model, twin, rtol=1e-8, atol=1e-10)


def test_a_gradient_on_all_the_data_can_be_asked_for():
    model, twin = twins()
    problem = replace(TOY, gradient_batch=60)
    HF_LARGE.start(problem, model, load_data().train, generator())(0.0)
    assert any(not torch.equal(p, q) for p, q in zip(model.parameters(), twin.parameters(), strict=True))
