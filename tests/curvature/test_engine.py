"""What the engine promises beyond right products: one trace for many points, and no stale or silent error."""

import sys
from functools import partial

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from latephase import HessianFree
from latephase.curvature import CurvatureError, ggn, hessian, ladder, linearize
from latephase.parts.conjugate_gradients import cg

GGN_MODULE = sys.modules["latephase.curvature.ggn"]  # the package's function of that name hides it


@pytest.fixture(autouse=True)
def _fresh():
    torch.manual_seed(0)
    ladder._choices.clear()


@pytest.fixture
def traces(monkeypatch):
    """Counts the traces made."""
    made = []

    def counting(point, options, trace=linearize.trace):
        made.append(point)
        return trace(point, options)

    monkeypatch.setattr(GGN_MODULE, "trace", counting)
    return made


def network():
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()


def closure(model, n=6, scale=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 4, generator=generator, dtype=torch.float64)
    y = torch.randint(3, (n,), generator=generator)

    def forward():
        z = scale * model(x)
        return F.cross_entropy(z, y), z

    return forward


def fresh(forward, params, v):
    """The product without anything remembered."""
    ladder._choices.clear()
    return ggn(forward, params) @ v


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


@pytest.mark.parametrize("part", ["jvp", "vjp", "primal"])
def test_a_wrong_program_is_never_used(monkeypatch, part):
    """Whatever a trace gets wrong is found at its first use, and the next rung serves."""

    def wrong(point, options, trace=linearize.trace):
        program = trace(point, options)
        function = getattr(program, part)
        return program._replace(**{part: lambda *args: [None if r is None else 1.01 * r for r in function(*args)]})

    model, v = network(), torch.randn(67, dtype=torch.float64)
    right = ggn(closure(model), model.parameters()) @ v
    ladder._choices.clear()
    monkeypatch.setattr(GGN_MODULE, "trace", wrong)
    operator = ggn(closure(model), model.parameters())
    assert operator.backend == "double-backward"
    assert "DisagreementError" in operator.explain()
    assert torch.allclose(operator @ v, right, rtol=1e-12, atol=0)


@pytest.mark.parametrize("part", ["primal", "vjp"])
def test_a_remembered_program_that_computes_something_else_is_traced_anew(traces, part):
    """Outputs and gradient of every later point are held against those of the closure itself."""
    model, v = network(), torch.randn(67, dtype=torch.float64)
    right = ggn(closure(model), model.parameters()) @ v
    (key, choice), *_ = ladder._choices.items()
    (program,) = choice.build.args
    function = getattr(program, part)
    wrong = program._replace(**{part: lambda *args: [1.01 * r for r in function(*args)]})
    ladder._choices[key] = choice._replace(build=partial(linearize.Linearization, wrong))
    operator = HessianFree(model.parameters(), lr=0.0)
    operator.step(closure(model))  # a step has the gradient at hand
    assert len(traces) == 2
    assert torch.equal(ggn(closure(model), model.parameters()) @ v, right)


def test_an_engine_that_fails_at_a_product_is_left_for_a_lower_rung(monkeypatch):
    model, v = network(), torch.randn(67, dtype=torch.float64)
    right = ggn(closure(model), model.parameters()) @ v
    operator = ggn(closure(model), model.parameters())
    monkeypatch.setattr(operator._engine, "jvp", lambda v: (_ for _ in ()).throw(NotImplementedError("no backward")))
    torch.testing.assert_close(operator @ v, right, rtol=1e-12, atol=0.0)
    assert operator.backend == "linearize, math kernels"
    assert "not by linearize: in a product, NotImplementedError: no backward" in operator.explain()
    assert ggn(closure(model), model.parameters()).backend == "linearize, math kernels"  # once for all


def test_memory_that_is_short_is_no_reason_to_step_down(monkeypatch):
    def short(point, options):
        raise torch.OutOfMemoryError("CUDA out of memory")

    model = network()
    monkeypatch.setattr(GGN_MODULE, "trace", short)
    with pytest.raises(torch.OutOfMemoryError):
        ggn(closure(model), model.parameters())


def test_explain_says_what_ran_and_what_it_cost():
    model = network()
    operator = ggn(closure(model), model.parameters())
    operator @ torch.ones(67, dtype=torch.float64)
    assert operator.backend == "linearize"
    text = operator.explain()
    assert "products by linearize" in text
    assert "closed form" in text
    assert "1 products" in text


def test_a_refusal_names_the_operation_and_the_way_out():
    class Distances(nn.Module):
        def __init__(self):
            super().__init__()
            self.centres = nn.Parameter(torch.randn(3, 4))

        def forward(self, x):
            return -torch.cdist(x, self.centres)

    model, x, y = Distances(), torch.randn(5, 4), torch.randint(3, (5,))

    def forward():
        z = model(x)
        return F.cross_entropy(z, y), z

    with pytest.raises(CurvatureError, match="_cdist_forward") as error:
        ggn(forward, model.parameters())
    assert "double-backward" in str(error.value)
    assert "mvp" in str(error.value)


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
    operator @ v
    for name in ("tolist", "item", "__float__", "__bool__"):
        monkeypatch.setattr(torch.Tensor, name, lambda *_: pytest.fail("a product read a value"))
    operator @ v


def test_micro_batches_of_one_shape_share_one_trace(traces):
    model = network()
    batches = [(torch.randn(6, 4, dtype=torch.float64), torch.randint(3, (6,))) for _ in range(4)]
    optimizer = HessianFree(model.parameters())
    for in_memory in (1, 4):
        optimizer.acc_step(model, F.cross_entropy, batches, micro_batches_in_memory=in_memory)
    assert len(traces) == 1
