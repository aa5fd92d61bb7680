"""Hessian-free strategies are the optimizer on the batches drawn."""

from dataclasses import replace

import pytest
import torch
from tests.study.strategies.twins import assert_same, generator, twins
from tests.study.toy import TOY, load_data

from latephase import HessianFree
from latephase.strategies.hf import HF, hf_equal, hf_large
from latephase.tasks import batches


@pytest.mark.parametrize(("strategy", "gradient"), [(hf_equal(TOY), 16), (hf_large(TOY), 32)])
@pytest.mark.parametrize("chunk", [2048, 7])
def test_hf_is_the_optimizer_on_the_batches_drawn(strategy, gradient, chunk, monkeypatch):
    monkeypatch.setattr(batches, "_CHUNK", chunk)
    model, twin = twins()
    data = load_data()
    trainer = strategy.start(TOY, model, data, generator())
    optimizer = HessianFree([dict(group) for group in TOY.parameter_groups(twin)])
    stream = batches.hessian_free(data, curvature=16, gradient=gradient, evaluation=20, generator=generator())
    for _ in range(3):
        record = trainer.step(0.0).record
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
        assert record.cg_iterations == optimizer.last_step.cg_iterations


def test_the_same_batch_judges_itself():
    model, _ = twins()
    record = HF("hf_same_batch", 24, 24, 0, same=True).start(TOY, model, load_data(), generator()).step(0.0).record
    assert record.loss_before == record.loss_model
    record = hf_equal(TOY).start(TOY, model, load_data(), generator()).step(0.0).record
    assert record.loss_before != record.loss_model


def test_a_gradient_on_all_the_data_can_be_asked_for():
    model, twin = twins()
    problem = replace(TOY, gradient_batch=60)
    hf_large(problem).start(problem, model, load_data(), generator()).step(0.0)
    assert any(not torch.equal(p, q) for p, q in zip(model.parameters(), twin.parameters(), strict=True))


@pytest.mark.parametrize("chunk", [2048, 7])
@pytest.mark.parametrize("solver", ["quasi-newton", "direct", "cg"])
def test_what_a_step_took_is_its_work(solver, chunk, monkeypatch):
    """Gradients at trial points and dense matrices too, and no more where a batch is evaluated in parts."""
    monkeypatch.setattr(batches, "_CHUNK", chunk)
    model, _ = twins()
    trainer = HF("mine", 24, 24, 0, same=True, options={"solver": solver}).start(TOY, model, load_data(), generator())
    step = trainer.step(0.0)
    counts, parts = step.record.counts, -(-24 // chunk)
    assert counts.gradients % parts == 0
    assert (counts.gradients // parts > 1) == (solver == "quasi-newton")
    assert (step.record.matrices > 0.0) == (solver == "direct")
    gradients = counts.gradients / parts + counts.losses / parts / 3 + 1 + counts.products + step.record.matrices
    assert step.gradients == pytest.approx(gradients * 24 / TOY.batch_size)


# ---------------------------------------------------------------------- by name
