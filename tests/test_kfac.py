"""K-FAC: its factors and directions beside dense Kronecker products, its lengths, and what surrounds a step."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from latephase import KFAC, PhaseSwitch, StepUndoneWarning
from tests.comparison import property_test, seeds

N = 12


def network(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        conv = nn.Conv2d(2, 3, (3, 2), stride=(1, 2), padding=1, dilation=(1, 1))
        return nn.Sequential(conv, nn.Tanh(), nn.Flatten(), nn.Linear(36, 4)).double()


def data(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(N, 2, 4, 5, generator=generator, dtype=torch.float64)
    return x, torch.randint(4, (N,), generator=generator)


def step(model: nn.Module, opt: Any, batch: tuple[Tensor, Tensor]) -> Tensor:
    def closure() -> Tensor:
        opt.zero_grad()
        loss = cross_entropy(model(batch[0]), batch[1])
        loss.backward()
        return loss

    loss: Tensor = opt.step(closure)
    return loss


def weight_of(model: nn.Sequential, place: int) -> nn.Parameter:
    weight = model[place].weight
    assert isinstance(weight, nn.Parameter)
    return weight


def dense_factors(model: nn.Sequential, batch: tuple[Tensor, Tensor], place: int) -> tuple[Tensor, Tensor]:
    """A and B of a layer: a kernel's inputs by gradients for single slopes, and slopes by differentiation."""
    layer = model[place]
    inputs = model[:place](batch[0]).detach()
    outputs = layer(inputs).detach().requires_grad_()
    (g,) = torch.autograd.grad(cross_entropy(model[place + 1 :](outputs), batch[1]), outputs)
    rows_a, rows_g = [], []
    for n in range(N):
        value = layer(inputs[n : n + 1])
        flat, slopes = value.flatten(2) if value.dim() > 2 else value.unsqueeze(2), g[n : n + 1]
        slopes = slopes.flatten(2) if slopes.dim() > 2 else slopes.unsqueeze(2)
        for where in range(flat.shape[2]):
            (a,) = torch.autograd.grad(flat[0, 0, where], weight_of(model, place), retain_graph=True)
            rows_a.append(a.flatten(1)[0])
            rows_g.append(slopes[0, :, where])
    a, b = torch.stack(rows_a), torch.stack(rows_g)
    return a.T @ a / len(a), b.T @ b / len(b)


@pytest.mark.parametrize("place", [0, 3])
@property_test
@given(seed=seeds, damping=st.floats(0.01, 10.0))
def test_the_direction_is_that_of_the_dense_kronecker_product(place: int, seed: int, damping: float) -> None:
    """Of A ⊗ B, each with its damping; the length is 0.2 · lr by the root mean square."""
    model, batch = network(seed), data(seed)
    weight = weight_of(model, place)
    before = weight.detach().clone()
    (g,) = torch.autograd.grad(cross_entropy(model(batch[0]), batch[1]), weight)
    A, B = (
        F + damping * F.diagonal().mean() * torch.eye(len(F), dtype=F.dtype) for F in dense_factors(model, batch, place)
    )
    expected = torch.linalg.solve(torch.kron(B, A), g.flatten())
    step(model, KFAC(model, lr=0.05, damping=damping, rows=10**6), batch)
    move = (before - weight.detach()).flatten()
    assert float(move.square().mean().sqrt()) == pytest.approx(0.2 * 0.05)
    torch.testing.assert_close(move / move.norm(), expected / expected.norm(), rtol=1e-6, atol=1e-8)


def test_all_other_parameters_take_adam_s_steps() -> None:
    model, twin = network(), network()
    opt = KFAC(model, lr=0.01, betas=(0.8, 0.9), weight_decay=0.1)
    adam = torch.optim.Adam(list(twin.parameters())[1::2], lr=0.01, betas=(0.8, 0.9), weight_decay=0.1)
    for seed in range(4):
        step(model, opt, data(seed))
        step(twin, adam, data(seed))
        with torch.no_grad():
            for number, (p, q) in enumerate(zip(model.parameters(), twin.parameters(), strict=True)):
                if number % 2:
                    assert torch.equal(p, q)
                else:
                    q.copy_(p)


def test_factors_are_a_mean_at_first_and_forget_later() -> None:
    model = network()
    opt, seen = KFAC(model, lr=0.0, every=2, rows=10**6), []
    for number in range(60):
        step(model, opt, data(number))
        seen.append(dense_factors(model, data(number), 3)[0])
        if number == 4:
            torch.testing.assert_close(opt.state[model[3].weight]["inputs"], torch.stack(seen[0:5:2]).mean(0))
    mean = torch.stack(seen[0:40:2]).mean(0)  # a mean of twenty records, then each takes a twentieth of its place
    for new in seen[40::2]:
        mean = mean.lerp(new, 0.05)
    torch.testing.assert_close(opt.state[model[3].weight]["inputs"], mean)


def test_few_rows_are_enough_for_factors() -> None:
    model, opts = network(), {}
    for rows in (3, 10**6):
        opts[rows] = KFAC(model, lr=0.0, rows=rows)
        step(model, opts[rows], data())
    few, every = (opts[rows].state[model[3].weight]["inputs"] for rows in (3, 10**6))
    assert torch.linalg.matrix_rank(few) == 3
    assert torch.linalg.matrix_rank(every) == N


def test_momentum_is_nesterov_s_and_weight_decay_an_l2_term() -> None:
    model = network()
    opt = KFAC(model, lr=0.0, momentum=0.6, weight_decay=0.3)
    weight, m = weight_of(model, 3), None
    for seed in range(3):
        batch = data(seed)
        (g,) = torch.autograd.grad(cross_entropy(model(batch[0]), batch[1]), weight)
        g = g + 0.3 * weight.detach()
        m = g if m is None else 0.6 * m + 0.4 * g
        step(model, opt, batch)
        torch.testing.assert_close(opt.state[weight]["momentum"], m)
    opt.param_groups[0]["lr"], before = 0.1, weight.detach().clone()
    state = {name: value.clone() for name, value in opt.state[weight].items()}
    batch = data(3)
    (g,) = torch.autograd.grad(cross_entropy(model(batch[0]), batch[1]), weight)
    g = g + 0.3 * weight.detach()
    m = 0.6 * m + 0.4 * g
    step(model, opt, batch)
    d = state["inverse_slopes"] @ (0.4 * g + 0.6 * m) @ state["inverse_inputs"]
    torch.testing.assert_close(before - weight.detach(), 0.1 * 0.2 * math.sqrt(d.numel()) * d / d.norm())


def test_it_goes_on_to_the_bit_from_a_saved_state() -> None:
    model = network()
    opt = KFAC(model, every=3)
    for seed in range(4):
        step(model, opt, data(seed))
    other = copy.deepcopy(model)
    resumed = KFAC(other, every=3)
    resumed.load_state_dict(copy.deepcopy(opt.state_dict()))
    for seed in range(4, 9):
        assert torch.equal(step(model, opt, data(seed)), step(other, resumed, data(seed)))
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))


def test_a_copy_of_network_and_optimizer_goes_on_as_they_do() -> None:
    model = network()
    opt = KFAC(model, every=2)
    step(model, opt, data())
    other, copied = copy.deepcopy((model, opt))
    for seed in range(4):
        assert torch.equal(step(model, opt, data(seed)), step(other, copied, data(seed)))
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))


def test_it_is_the_second_phase_of_a_switch() -> None:
    model = network()
    switch = PhaseSwitch(torch.optim.Adam(model.parameters()), KFAC(model, lr=0.002), 2)
    for _ in range(4):
        step(model, switch, data())
    assert switch.phase == "second"
    assert switch.second.param_groups[0]["steps"] == 2


def test_under_autocast_factors_have_the_type_of_the_weights() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)), torch.randn(20, 3)
    opt = KFAC(model, lr=0.01)

    def closure() -> Tensor:
        opt.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            outputs = model(x)
        loss = (outputs.float() - x).square().mean()
        loss.backward()
        return loss

    losses = [float(opt.step(closure)) for _ in range(30)]
    assert losses[-1] < 0.8 * losses[0]
    assert opt.state[model[0].weight]["slopes"].dtype is torch.float32


def test_nothing_stays_on_the_network() -> None:
    model = network()
    opt = KFAC(model)
    with pytest.raises(RuntimeError, match="on purpose"):
        opt.step(lambda: (_ for _ in ()).throw(RuntimeError("on purpose")))
    step(model, opt, data())
    assert not any(module._forward_hooks for module in model.modules())


def test_what_has_no_gradient_stays_and_a_closure_may_go_through_the_network_several_times() -> None:
    model = network()
    model[0].requires_grad_(False)
    unused = nn.Linear(2, 2).double()
    model.add_module("unused", unused)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    halves = [tuple(part[half] for part in data()) for half in (slice(0, 6), slice(6, N))]
    opt = KFAC(model, rows=10**6)

    def closure() -> Tensor:
        opt.zero_grad()
        losses = [cross_entropy(model[:4](x), y) / 2 for x, y in halves]
        for loss in losses:
            loss.backward()
        return sum(losses, torch.zeros(()))

    opt.step(closure)
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {"3.weight", "3.bias"}
    A = dense_factors(network(), data(), 3)[0]
    torch.testing.assert_close(opt.state[model[3].weight]["inputs"], A)


def test_a_single_image_and_arguments_by_name() -> None:
    layer = nn.Conv2d(2, 3, 2, bias=False).double()
    image = torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    factors = []
    for inputs in (image, image.unsqueeze(0)):
        opt = KFAC(layer, lr=0.0)

        def closure(inputs: Tensor = inputs) -> Tensor:
            loss = layer(input=inputs).square().mean()
            loss.backward()
            return loss

        opt.step(closure)
        factors.append(opt.state[layer.weight]["inputs"])
    assert torch.equal(*factors)
    assert torch.linalg.matrix_rank(factors[0]) == 8


def test_attention_s_projections_are_adam_s() -> None:
    """They are never called as layers, so that nothing is seen of their inputs."""
    attention = nn.MultiheadAttention(4, 2)
    assert [tuple(p.shape) for p in KFAC(attention).param_groups[0]["params"]] == []
    opt, x = KFAC(attention), torch.randn(3, 5, 4)
    before = attention.out_proj.weight.detach().clone()

    def closure() -> Tensor:
        opt.zero_grad()
        loss = attention(x, x, x)[0].square().mean()
        loss.backward()
        return loss

    opt.step(closure)
    assert not torch.equal(before, attention.out_proj.weight)


def test_sequences_and_single_vectors() -> None:
    layer = nn.Linear(3, 2).double()
    x = torch.randn(4, 5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for inputs in (x, x[0, 0]):
        opt = KFAC(layer, lr=0.0)

        def closure(inputs: Tensor = inputs) -> Tensor:
            loss = layer(inputs).square().mean()
            loss.backward()
            return loss

        opt.step(closure)
        rows = inputs.reshape(-1, 3)
        torch.testing.assert_close(opt.state[layer.weight]["inputs"], rows.T @ rows / len(rows))


def test_a_gradient_that_is_not_finite_changes_nothing() -> None:
    model = network()
    opt = KFAC(model, every=1)
    step(model, opt, data())
    x, y = data()
    before, state = copy.deepcopy(model.state_dict()), copy.deepcopy(opt.state_dict())
    with pytest.warns(StepUndoneWarning, match="not finite"):
        step(model, opt, (x * math.inf, y))
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    after = opt.state_dict()
    assert after["param_groups"] == state["param_groups"]
    for number, values in state["state"].items():
        assert all(torch.equal(after["state"][number][name], value) for name, value in values.items())


def test_without_slopes_the_metric_stays_as_it_was() -> None:
    """A layer that the loss does not depend on in one batch has factors of zero, which have no inverse."""
    model = network()
    opt = KFAC(model, every=1)
    x, y = data()
    opt.step(lambda: (0.0 * cross_entropy(model(x), y)).sum())
    before = copy.deepcopy(model.state_dict())

    def flat() -> Tensor:
        opt.zero_grad()
        loss = 0.0 * cross_entropy(model(x), y)
        loss.backward()
        return loss

    opt.step(flat)
    assert "inverse_slopes" not in opt.state[model[3].weight]
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"lr": -1.0}, ValueError, "lr"),
        ({"momentum": 1.0}, ValueError, r"momentum must be in \[0, 1\)"),
        ({"momentum": "much"}, TypeError, "momentum"),
        ({"damping": 0.0}, ValueError, "damping"),
        ({"every": 0}, ValueError, "every"),
        ({"rows": 0.5}, TypeError, "rows"),
        ({"weight_decay": -1.0}, ValueError, "weight_decay"),
    ],
)
def test_bad_settings(options: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        KFAC(network(), **options)


def test_bad_networks() -> None:
    with pytest.raises(TypeError, match="model must be a torch Module, not list"):
        KFAC([])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no parameters to train"):
        KFAC(nn.Tanh())
    with pytest.raises(TypeError, match=r"float32 or float64, not torch\.bfloat16"):
        KFAC(nn.Linear(1, 1).bfloat16())
    with pytest.raises(TypeError, match="closure"):
        KFAC(network()).step(None)


def test_several_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each would have factors of its own rows, and the networks would part without a word."""
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    model = network()
    with pytest.raises(RuntimeError, match="2 processes, and each would have factors of its own"):
        step(model, KFAC(model), data())
