"""The verdict, and numbers beside their definitions; the network stays as it is."""

import math

import pytest
import torch
from tests.finishing.tasks import assert_same, examples, least_squares, network, state
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

from latephase import amenability


def test_without_noise_and_with_something_to_gain_it_is_amenable():
    model, closure, data = least_squares()
    for found in (amenability(model, closure), amenability(model, mse_loss, data, batch_size=40)):
        assert found.amenable
        assert found.signal == math.inf
        assert found.gain > 0.9
        assert found.reduction_ratio == pytest.approx(1.0, rel=0.05)  # the objective is quadratic
        assert "without noise" in found.reason


def test_at_the_minimum_it_is_not():
    model, closure, (x, y) = least_squares()
    y += 0.1  # in place: the closure's, and beyond what the network can fit
    with torch.no_grad():
        model.weight.copy_(torch.linalg.lstsq(x, y).solution.T)
    found = amenability(model, closure)
    assert not found.amenable
    assert found.gain <= 1e-9


def test_where_all_data_are_dear_it_is_not():
    model = network()
    found = amenability(model, cross_entropy, examples(2000), batch_size=10)
    assert not found.amenable
    assert "cost 200 of the first-order steps" in found.reason
    assert amenability(model, cross_entropy, examples(2000), batch_size=100).amenable


def test_a_gradient_of_noise_is_not_worth_following():
    torch.manual_seed(0)
    model = nn.Linear(4, 1, bias=False).double()
    nn.init.zeros_(model.weight)
    x, y = torch.randn(4000, 4, dtype=torch.float64), torch.randn(4000, 1, dtype=torch.float64)
    found = amenability(model, mse_loss, (x, y), batch_size=100)
    assert not found.amenable
    assert found.signal < 20.0
    weights = torch.linalg.lstsq(x, y).solution
    with torch.no_grad():
        model.weight.copy_(weights.T)
    found = amenability(model, mse_loss, (x, y), batch_size=100)
    assert not found.amenable
    assert "not larger than its noise" in found.reason


def test_the_signal_is_the_squared_gradient_over_the_variance_of_its_mean():
    model = network()
    x, y = examples(4000)
    found = amenability(model, cross_entropy, (x, y), batch_size=125)
    rows = []
    for one, target in zip(x[:1000], y[:1000], strict=True):
        parts = torch.autograd.grad(cross_entropy(model(one[None]), target[None]), [*model.parameters()])
        rows.append(torch.cat([part.flatten() for part in parts]))
    g = torch.stack(rows)
    expected = g.mean(0).square().sum() / (g.var(0).sum() / 2000)
    assert found.signal == pytest.approx(expected.item(), rel=0.5)


def test_the_spectrum_is_the_ggns():
    model, closure, (x, _) = least_squares()
    found = amenability(model, closure)
    eigenvalues = torch.linalg.eigvalsh(2.0 / len(x) * x.T @ x)
    assert found.largest_eigenvalue == pytest.approx(eigenvalues[-1].item(), rel=1e-6)
    assert found.decay is None  # six parameters have no tenth


def test_the_network_and_the_random_streams_stay():
    model = network(0, nn.BatchNorm1d(6), nn.Dropout(0.3))
    model[1].eval()
    model(examples()[0]).sum().backward()
    before, grads = state(model), [p.grad.clone() for p in model.parameters()]
    torch.manual_seed(5)
    random = torch.get_rng_state()
    amenability(model, cross_entropy, examples(), batch_size=20)
    assert_same(state(model), before)
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), grads, strict=True))
    assert torch.equal(torch.get_rng_state(), random)
    assert [layer.training for layer in model] == [True, False, True, True, True]


def test_it_repeats_and_the_seed_matters():
    one, same, other = (amenability(network(), cross_entropy, examples(), batch_size=20, seed=s) for s in (1, 1, 2))
    assert (one.signal, one.gain) == (same.signal, same.gain)
    assert one.signal != other.signal


def test_weight_decay_is_part_of_the_objective():
    model = network()
    sgd = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=1.0)
    assert amenability(model, cross_entropy, examples(), optimizer=sgd, batch_size=20).step.loss_before > (
        amenability(model, cross_entropy, examples(), batch_size=20).step.loss_before
    )


def test_its_text_has_the_numbers():
    found = amenability(network(), cross_entropy, examples(), batch_size=20)
    assert f"{found.signal:.3g}" in str(found)
    assert f"price of {found.price:.3g} gradients" in str(found)
    assert str(found).startswith("amenable" if found.amenable else "not amenable")


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((3, cross_entropy, examples()), {}, TypeError, r"model must be a torch\.nn\.Module"),
        ((network(), 3, examples()), {}, TypeError, "loss_func"),
        ((network(), cross_entropy, 3), {}, TypeError, "data must be"),
        ((network(), cross_entropy, examples(5)), {"batch_size": 2}, ValueError, "at least 8 examples, not 5"),
        ((network(), cross_entropy, examples()), {"batch_size": 0}, ValueError, "batch_size"),
        ((network(), cross_entropy, examples()), {"seed": -1}, ValueError, "seed"),
    ],
)
def test_what_cannot_be_is_refused(arguments, options, error, message):
    with pytest.raises(error, match=message):
        amenability(*arguments, **options)


def test_a_loss_that_is_not_finite_is_refused():
    model = network()
    nn.init.constant_(model[0].weight, math.nan)
    with pytest.raises(ValueError, match="the loss is nan"):
        amenability(model, cross_entropy, examples(), batch_size=20)
