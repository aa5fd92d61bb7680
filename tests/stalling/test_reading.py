"""Reading an optimizer: products of vectors as their definitions say, whatever the optimizer does."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.comparison import optimizer_property_test, seeds
from torch.optim import SGD, AdamW

from latephase.stalling.reading import Reading

OPTIMIZERS = {
    "sgd": lambda groups: SGD(groups, lr=0.1),
    "momentum": lambda groups: SGD(groups, lr=0.1, momentum=0.9, weight_decay=0.01),
    "nesterov": lambda groups: SGD(groups, lr=0.1, momentum=0.9, nesterov=True),
    "adamw": lambda groups: AdamW(groups, lr=0.1),
}


def parameters(seed):
    torch.manual_seed(seed)
    shapes = [(3, 2), (), (4,)]
    return [torch.nn.Parameter(torch.randn(shape, dtype=torch.float64)) for shape in shapes]


def vector(tensors):
    return torch.cat([t.detach().reshape(-1) for t in tensors]).clone()


@optimizer_property_test
@given(seeds, st.sampled_from(sorted(OPTIMIZERS)))
def test_products_are_those_of_their_definitions(seed, kind):
    params = parameters(seed)
    opt = OPTIMIZERS[kind]([{"params": params[:1]}, {"params": params[1:], "lr": 0.02, "weight_decay": 0.0}])
    reading, x_before, g_before = Reading(gradients=True), None, None
    for _ in range(4):
        for p in params:
            p.grad = torch.randn_like(p)
        x = vector(params)
        opt.step()
        sample, g = reading.read(opt, 0.5), vector([p.grad for p in params])
        if kind in ("momentum", "adamw") and x_before is not None:
            g[: params[0].numel()] += opt.param_groups[0]["weight_decay"] * x[: params[0].numel()]
        if x_before is not None:
            u = vector(params) - x
            assert sample.loss == 0.5
            assert sample.length == pytest.approx(float(u @ u) / 2.0, rel=1e-9)
            assert sample.drift == pytest.approx(float(x @ x - vector(params) @ vector(params)) / 2.0, rel=1e-7)
        else:
            assert sample is None
        if g_before is not None:
            assert sample.product == pytest.approx(float(g_before @ g), rel=1e-9)
        x_before, g_before = x, (g if x_before is not None else None)


def test_the_statistic_is_that_of_sasa_plus_times_the_rate():
    """⟨x, d⟩ − ½α‖d‖², with d the momentum buffer."""
    params = parameters(0)
    opt = SGD(params, lr=0.1, momentum=0.9)
    reading = Reading(gradients=False)
    for step in range(5):
        for p in params:
            p.grad = torch.randn_like(p)
        x = vector(params)
        opt.step()
        sample = reading.read(opt, 0.0)
        d = vector([opt.state[p]["momentum_buffer"] for p in params])
        if step:
            assert sample.drift == pytest.approx(0.1 * float(x @ d - 0.05 * d @ d), rel=1e-9)
            assert sample.product is None


def test_parameters_of_half_precision_and_complex_ones_are_read():
    half = torch.nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
    both = torch.nn.Parameter(torch.ones(1, dtype=torch.complex64))
    opt = SGD([half, both], lr=1.0)
    reading = Reading(gradients=True)
    for _ in range(2):
        half.grad, both.grad = torch.ones_like(half), torch.full_like(both, 1.0 + 2.0j)
        opt.step()
        sample = reading.read(opt, 0.0)
    assert sample.length == 0.5 * (2.0 + 5.0)
    assert sample.product == 2.0 + 5.0


def test_parameters_without_a_gradient_count_as_unmoved():
    params = parameters(0)
    opt = SGD(params, lr=0.1)
    reading = Reading(gradients=True)
    params[0].grad = torch.ones_like(params[0])
    for _ in range(2):
        opt.step()
        sample = reading.read(opt, 0.0)
    assert sample.product == 6.0


def test_rates_of_any_group_count():
    params = parameters(0)
    opt = SGD([{"params": params[:1]}, {"params": params[1:]}], lr=0.1)
    reading = Reading(gradients=False)
    assert [reading.rates_changed(opt) for _ in range(2)] == [False, False]
    opt.param_groups[1]["lr"] = 0.01
    assert [reading.rates_changed(opt) for _ in range(2)] == [True, False]


def test_what_cannot_be_read_is_refused():
    params = parameters(0)
    reading = Reading(gradients=True)
    with pytest.raises(ValueError, match="after step and before zero_grad"):
        reading.read(SGD(params, lr=0.1), 0.0)
    reading = Reading(gradients=False)
    reading.read(SGD(params, lr=0.1), 0.0)
    with pytest.raises(ValueError, match="has 7 parameters, but those before were 11"):
        reading.read(SGD(params[:2], lr=0.1), 0.0)
