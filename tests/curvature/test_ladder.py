"""Which rung computes products: no wrong one, and never one that has failed."""

import sys
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from tests.curvature.networks import closure, forget_choices, network, point_at
from torch import nn

from latephase import HessianFree
from latephase.curvature import GGN, CurvatureError, CurvatureWarning, ggn, ladder
from latephase.curvature.engines import linearize

GGN_MODULE = sys.modules["latephase.curvature.ggn"]  # the package's function of that name hides it


pytestmark = pytest.mark.usefixtures("no_memory")


@pytest.mark.parametrize("part", ["jvp", "vjp", "primal"])
def test_a_wrong_program_is_never_used(monkeypatch, part):
    """Whatever a trace gets wrong is found at its first use, and the next rung serves."""

    def wrong(point, options, trace=linearize.trace):
        program = trace(point, options)
        function = getattr(program, part)
        return program._replace(**{part: lambda *args: [None if r is None else 1.01 * r for r in function(*args)]})

    model, v = network(), torch.randn(67, dtype=torch.float64)
    right = ggn(closure(model), model.parameters()) @ v
    forget_choices()
    monkeypatch.setattr(GGN_MODULE, "trace", wrong)
    operator = ggn(closure(model), model.parameters())
    assert operator.backend == "double-backward"
    assert "DisagreementError" in operator.explain()
    assert torch.allclose(operator @ v, right, rtol=1e-12, atol=0)


def spoil_what_is_remembered(part, spoilt):
    """Let the one remembered program have another part, made from its own."""
    (key, choice), *_ = ladder._choices.items()
    assert isinstance(choice.engine_at, partial)
    (program,) = choice.engine_at.args
    wrong = program._replace(**{part: spoilt(getattr(program, part))})
    ladder._choices[key] = replace(choice, engine_at=partial(linearize.Linearization, wrong))


def off_by_a_percent(function):
    return lambda *args: [1.01 * r for r in function(*args)]


def operator_with_gradient(forward, model):
    point = point_at(forward, model.parameters())
    point.gradient(retain_graph=False)
    return GGN(point)


@pytest.mark.parametrize(
    ("parts", "solver"),
    [(["primal"], "cg"), (["jvp"], "cg"), (["vjp"], "cg"), (["jvp", "vjp"], "cg"), (["jvp", "vjp"], "direct")],
)
def test_a_remembered_program_that_computes_something_else_is_traced_anew(traces, parts, solver):
    """Outputs of every later point, and what its gradient tells of products, are held against the closure itself."""
    model, spoilt = network(), network()
    spoilt.load_state_dict(model.state_dict())
    HessianFree(model.parameters(), solver=solver).step(closure(model))
    for part in parts:
        spoil_what_is_remembered(part, off_by_a_percent)
    HessianFree(spoilt.parameters(), solver=solver).step(closure(spoilt))  # a step has the gradient at hand
    assert len(traces) == 2
    for p, q in zip(model.parameters(), spoilt.parameters(), strict=True):
        torch.testing.assert_close(q, p, rtol=0.0, atol=1e-12)


@pytest.mark.parametrize("part", ["jvp", "vjp"])
def test_what_the_first_product_is_blind_to_the_second_shows(traces, part):
    """The last bias is not in the first vector, and its part of J is wrong by a percent."""
    first, second = torch.randn(2, 67, dtype=torch.float64)
    first[-3:] = 0.0
    model = network()
    forward = closure(model)
    right = ggn(forward, model.parameters()) @ second

    def spoilt(function):
        if part == "vjp":
            return lambda *args: [*function(*args)[:-1], 1.01 * function(*args)[-1]]
        return lambda *args: function(*args[:3], 1.01 * args[3], *args[4:])

    spoil_what_is_remembered(part, spoilt)
    operator = operator_with_gradient(forward, model)
    operator @ first
    assert len(traces) == 1
    torch.testing.assert_close(operator @ second, right, rtol=1e-12, atol=0.0)
    assert len(traces) == 2
    assert "not by linearize, as remembered: DisagreementError" in operator.explain()
    assert not operator._point.has_graph  # it came back for the trace, and is memory


def test_a_vector_that_shows_nothing_is_no_evidence(traces):
    """Where it is orthogonal to the gradient, all entries of the gradient are asked."""
    model = network()
    forward = closure(model)
    ggn(forward, model.parameters())
    spoil_what_is_remembered("vjp", off_by_a_percent)
    operator_with_gradient(forward, model) @ torch.zeros(67, dtype=torch.float64)
    assert len(traces) == 2


def test_where_the_gradient_has_more_than_the_outputs_the_graph_is_asked(traces):
    model = network()
    forward = closure(model)

    def regularised():
        loss, outputs = forward()
        return loss + 0.1 * model[0].weight.square().sum(), outputs

    with pytest.warns(CurvatureWarning, match="not in the GGN"):
        HessianFree(model.parameters(), lr=0.0).step(regularised)
    HessianFree(model.parameters(), lr=0.0).step(regularised)
    assert len(traces) == 1
    spoil_what_is_remembered("vjp", off_by_a_percent)
    with pytest.warns(CurvatureWarning, match="not in the GGN"):
        HessianFree(model.parameters(), lr=0.0).step(regularised)
    assert len(traces) == 2


def test_products_that_stay_wrong_lead_down_to_a_rung_whose_are_right(monkeypatch):
    """Whatever a trace gets wrong only after the checks of its first use."""

    def wrong(point, options, trace=linearize.trace):
        program, calls = trace(point, options), iter(range(1000))
        return program._replace(jvp=lambda *args: [(1.01 if next(calls) else 1.0) * r for r in program.jvp(*args)])

    model, v = network(), torch.randn(67, dtype=torch.float64)
    right = ggn(closure(model), model.parameters()) @ v
    forget_choices()
    monkeypatch.setattr(GGN_MODULE, "trace", wrong)
    operator = ggn(closure(model), model.parameters())
    assert operator.backend == "linearize"
    torch.testing.assert_close(operator @ v, right, rtol=1e-12, atol=0.0)
    assert operator.backend == "double-backward"


def counted(calls, part):
    """The function, as one that counts its calls."""

    def counting(function):
        def run(*args):
            calls[part] += 1
            return function(*args)

        return run

    return counting


def test_checks_of_later_points_run_nothing_but_what_the_products_run():
    """Or they would cost a step of few products several percent."""
    model, calls = network(), {"jvp": 0, "vjp": 0}
    optimizer = HessianFree(model.parameters())
    optimizer.step(closure(model))
    for part in calls:
        spoil_what_is_remembered(part, counted(calls, part))
    for _ in range(3):
        optimizer.step(closure(model))
        assert calls == dict.fromkeys(calls, optimizer.last_step.counts.products)
        calls.update(jvp=0, vjp=0)


def test_the_whole_gradient_is_asked_once_at_most():
    model, calls = network(), {"vjp": 0}
    forward = closure(model)
    ggn(forward, model.parameters())
    spoil_what_is_remembered("vjp", counted(calls, "vjp"))
    operator = operator_with_gradient(forward, model)
    for _ in range(3):
        operator @ torch.zeros(67, dtype=torch.float64)
    assert calls["vjp"] == 3 + 1


def test_an_engine_that_fails_at_a_product_is_left_for_a_lower_rung(monkeypatch):
    model, v = network(), torch.randn(67, dtype=torch.float64)
    right = ggn(closure(model), model.parameters()) @ v
    operator = ggn(closure(model), model.parameters())
    monkeypatch.setattr(operator._engine, "jvp", lambda v: (_ for _ in ()).throw(NotImplementedError("no backward")))
    torch.testing.assert_close(operator @ v, right, rtol=1e-12, atol=0.0)
    assert operator.backend == "linearize, math kernels"
    assert "not by linearize: in a product, NotImplementedError: no backward" in operator.explain()
    assert ggn(closure(model), model.parameters()).backend == "linearize, math kernels"  # once for all


def test_each_failure_leads_one_rung_down(monkeypatch):
    """Also from a rung whose name begins with that of the rung above."""
    model, v = network(), torch.randn(67, dtype=torch.float64)
    operator = ggn(closure(model), model.parameters())
    right, rungs = operator @ v, []
    for _ in range(3):
        monkeypatch.setattr(
            operator._engine, "vjp", lambda v: (_ for _ in ()).throw(NotImplementedError("no backward"))
        )
        torch.testing.assert_close(operator @ v, right, rtol=1e-12, atol=0.0)
        rungs.append(operator.backend)
    assert rungs == ["linearize, math kernels", "double-backward", "double-backward, math kernels"]


def test_memory_that_is_short_is_no_reason_to_step_down(monkeypatch):
    def short(point, options):
        raise torch.OutOfMemoryError("CUDA out of memory")

    model = network()
    monkeypatch.setattr(GGN_MODULE, "trace", short)
    with pytest.raises(torch.OutOfMemoryError):
        ggn(closure(model), model.parameters())


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
