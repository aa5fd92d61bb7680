"""What operators promise: an account of themselves, nested outputs, matrices, and no wait for the device."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from tests.curvature.networks import closure, network

from latephase.curvature import ggn, hessian
from latephase.curvature.ggn import HELD_PRODUCTS
from latephase.parts.conjugate_gradients import cg

pytestmark = pytest.mark.usefixtures("no_memory")


def test_explain_says_what_ran_and_what_it_cost():
    model = network()
    operator = ggn(closure(model), model.parameters())
    operator @ torch.ones(67, dtype=torch.float64)
    assert operator.backend == "linearize"
    text = operator.explain()
    assert "products by linearize" in text
    assert "closed form" in text
    assert "1 products" in text


def test_outputs_may_be_nested_and_only_those_that_made_the_loss_count():
    model = network()
    x, y = torch.randn(6, 4, dtype=torch.float64), torch.randint(3, (6,))

    def nested():
        hidden = model[1](model[0](x))
        logits = model[2](hidden)
        return F.cross_entropy(logits, y), {"hidden": [hidden], "logits": (logits,), "name": "x", "n": None}

    def plain():
        logits = model(x)
        return F.cross_entropy(logits, y), logits

    v = torch.randn(67, dtype=torch.float64)
    assert torch.allclose(ggn(nested, model.parameters()) @ v, ggn(plain, model.parameters()) @ v, rtol=1e-12, atol=0)


def test_two_outputs_are_one_output_space():
    model = network()
    x, y = torch.randn(6, 4, dtype=torch.float64), torch.randint(3, (6,))

    def two():
        z, w = model(x), model(2.0 * x)
        return F.cross_entropy(z, y) + (z * w).pow(2).mean(), (z, w)

    def one():
        both = model(torch.cat([x, 2.0 * x]))
        z, w = both[:6], both[6:]
        return F.cross_entropy(z, y) + (z * w).pow(2).mean(), both

    v = torch.randn(67, dtype=torch.float64)
    assert torch.allclose(ggn(two, model.parameters()) @ v, ggn(one, model.parameters()) @ v, rtol=1e-10, atol=0)


def test_a_matrix_is_multiplied_column_by_column():
    model, v = network(), torch.randn(67, 3, dtype=torch.float64)
    for operator in (ggn(closure(model), model.parameters()), hessian(closure(model), model.parameters())):
        product = operator @ v
        assert product.shape == (67, 3)
        assert torch.equal(product[:, 1], operator @ v[:, 1])


def test_conjugate_gradients_wait_for_the_device_once_every_few_iterations(monkeypatch):
    waits = []
    for name in ("tolist", "item", "__float__", "__bool__"):
        original = getattr(torch.Tensor, name)

        def counting(self, *args, original=original):
            waits.append(1)
            return original(self, *args)

        monkeypatch.setattr(torch.Tensor, name, counting)
    A = torch.diag(torch.linspace(1.0, 100.0, 200, dtype=torch.float64))
    b = torch.ones(200, dtype=torch.float64)
    path = cg(lambda v: A @ v, b, max_iter=40, martens_conv_crit=False, check_every=5)
    assert path.last == 40
    assert len(waits) <= 2 + 40 // 5


def test_products_do_not_wait_for_the_device(monkeypatch):
    model, v = network(), torch.randn(67, dtype=torch.float64)
    operator = ggn(closure(model), model.parameters())
    for _ in range(HELD_PRODUCTS):
        operator @ v
    for name in ("tolist", "item", "__float__", "__bool__"):
        monkeypatch.setattr(torch.Tensor, name, lambda *_: pytest.fail("a product read a value"))
    operator @ v
