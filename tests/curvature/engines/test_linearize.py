"""What linearisation promises beyond right products: one trace for many points, and no stale constant."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from tests.curvature.networks import closure, fresh, network
from torch import nn

from latephase import HessianFree
from latephase.curvature import ggn
from latephase.curvature.verify import DisagreementError

pytestmark = pytest.mark.usefixtures("no_memory")


def test_one_trace_serves_new_data_and_new_parameters(traces):
    model, v = network(), torch.randn(67, dtype=torch.float64)
    results = []
    for seed in range(4):
        results.append((ggn(closure(model, seed=seed), model.parameters()) @ v, seed))
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(1.1)
    assert len(traces) == 1
    with torch.no_grad():
        for p in model.parameters():
            p.div_(1.1)
    product, seed = results[-1]
    expected = fresh(closure(model, seed=seed), model.parameters(), v)
    assert torch.allclose(product, expected, rtol=1e-12, atol=0)


def test_another_shape_is_another_program(traces):
    model, v = network(), torch.randn(67, dtype=torch.float64)
    ggn(closure(model), model.parameters())
    product = ggn(closure(model, n=7), model.parameters()) @ v
    assert len(traces) == 2
    assert torch.equal(product, fresh(closure(model, n=7), model.parameters(), v))


@pytest.mark.parametrize("scale", [2.0, 7, -0.1, float("1e-3")])
def test_another_factor_is_another_input_of_the_same_program(traces, scale):
    """As where a weight of the loss is annealed, or a sum is divided by a number of tokens."""
    model, v = network(), torch.randn(67, dtype=torch.float64)
    ggn(closure(model, scale=5), model.parameters())
    ggn(closure(model, scale=0.5), model.parameters())
    before = len(traces)
    product = ggn(closure(model, scale=scale), model.parameters()) @ v
    assert len(traces) == before == 2  # an integer and a number with a fraction
    assert torch.equal(product, fresh(closure(model, scale=scale), model.parameters(), v))


def test_an_unused_parameter_makes_another_program(traces):
    model, unused = network(), nn.Parameter(torch.ones(2, dtype=torch.float64))
    v = torch.randn(69, dtype=torch.float64)
    product = ggn(closure(model), model.parameters()) @ v[:67]
    with_unused = ggn(closure(model), [*model.parameters(), unused]) @ v
    assert len(traces) == 2
    assert torch.equal(with_unused, torch.cat([product, torch.zeros(2, dtype=torch.float64)]))


def test_python_control_flow_on_values_is_followed(traces):
    model, v = network(), torch.randn(67, dtype=torch.float64)
    x, y = torch.randn(6, 4, dtype=torch.float64), torch.randint(3, (6,))

    def forward():
        z = model(x)
        if z.mean().item() > 0.0:
            z = z**3
        return F.cross_entropy(z, y), z

    with torch.no_grad():
        model[2].bias.fill_(5.0)
    above = ggn(forward, model.parameters()) @ v
    with torch.no_grad():
        model[2].bias.fill_(-5.0)
    below = ggn(forward, model.parameters()) @ v
    assert len(traces) == 2
    assert torch.equal(below, fresh(forward, model.parameters(), v))
    assert not torch.allclose(above, below)


def test_data_made_inside_the_closure_is_no_stale_constant():
    model, v = network(), torch.randn(67, dtype=torch.float64)
    batches = torch.randn(3, 6, 4, dtype=torch.float64).numpy()
    y = torch.randint(3, (6,))
    for batch in batches:

        def forward(batch=batch):
            z = model(torch.from_numpy(batch) + torch.tensor(batch[0].tolist(), dtype=torch.float64))
            return F.cross_entropy(z, y), z

        product = ggn(forward, model.parameters()) @ v
        assert torch.equal(product, fresh(forward, model.parameters(), v))


def test_an_operator_of_old_parameters_refuses_to_multiply():
    model = network()
    operator = ggn(closure(model), model.parameters())
    operator @ torch.ones(67, dtype=torch.float64)
    with torch.no_grad():
        model[0].weight.add_(1.0)
    with pytest.raises(RuntimeError, match="parameters have changed"):
        operator @ torch.ones(67, dtype=torch.float64)


def test_micro_batches_of_one_shape_share_one_trace(traces):
    model = network()
    batches = [(torch.randn(6, 4, dtype=torch.float64), torch.randint(3, (6,))) for _ in range(4)]
    optimizer = HessianFree(model.parameters())
    for in_memory in (1, 4):
        optimizer.acc_step(model, F.cross_entropy, batches, micro_batches_in_memory=in_memory)
    assert len(traces) == 1


def test_a_narrower_type_changes_the_product_a_little_and_its_type_not_at_all():
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    x, y = torch.randn(6, 4), torch.randint(3, (6,))

    def forward():
        z = model(x)
        return F.cross_entropy(z, y), z

    v = torch.randn(67)
    exact = ggn(forward, model.parameters()) @ v
    operator = ggn(forward, model.parameters(), product_dtype=torch.bfloat16)
    assert operator.backend == "linearize, products in torch.bfloat16"
    error = float((operator @ v - exact).norm() / exact.norm())
    assert (operator @ v).dtype is torch.float32
    assert 1e-4 < error < 3e-2


def shifted_by(shift):
    """An engine near the solution of equations with large terms, its outputs off by so much; and the true slopes."""
    generator = torch.Generator().manual_seed(0)
    x, theta = torch.randn(20, 3, generator=generator), torch.nn.Parameter(torch.tensor([5.0, -3.0, 4.0]))
    y = x @ theta.detach() + 1e-3 * torch.randn(20, generator=generator)

    def forward():
        z = x @ theta - y
        return z.square().mean(), z

    engine: Any = ggn(forward, [theta])._engine
    primal = engine._program.primal

    def off(*tensors):
        z, slopes, *rest = primal(*tensors)
        return [z + shift, slopes + 2.0 * shift / len(z), *rest]

    engine._program = engine._program._replace(primal=off)
    engine.release()
    return engine, 2.0 / len(y) * forward()[1].detach()


def test_outputs_may_be_off_by_the_rounding_of_their_terms_and_slopes_are_the_closures():
    engine, slopes = shifted_by(1e-4)
    assert 2.0 * 1e-4 / len(slopes) > 0.01 * slopes.norm()  # much, beside the outputs themselves
    torch.testing.assert_close(engine.slopes[0], slopes, rtol=1e-3, atol=1e-7)


def test_outputs_that_are_off_by_more_are_refused():
    engine, _ = shifted_by(0.1)
    with pytest.raises(DisagreementError, match="the outputs"):
        _ = engine.slopes
    with pytest.raises(DisagreementError, match="the outputs"):  # and again
        engine.vjp([torch.ones(20)])
