"""Which rung computes products: no wrong one, and never one that has failed."""

import sys
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from tests.curvature.networks import closure, forget_choices, network
from torch import nn

from latephase import HessianFree
from latephase.curvature import CurvatureError, ggn, ladder
from latephase.curvature.engines import linearize

GGN_MODULE = sys.modules["latephase.curvature.ggn"]  # the package's function of that name hides it


@pytest.fixture(autouse=True)
def _no_memory():
    forget_choices()


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


@pytest.mark.parametrize("part", ["primal", "vjp"])
def test_a_remembered_program_that_computes_something_else_is_traced_anew(traces, part):
    """Outputs and gradient of every later point are held against those of the closure itself."""
    model, v = network(), torch.randn(67, dtype=torch.float64)
    right = ggn(closure(model), model.parameters()) @ v
    (key, choice), *_ = ladder._choices.items()
    assert isinstance(choice.engine_at, partial)
    (program,) = choice.engine_at.args
    function = getattr(program, part)
    wrong = program._replace(**{part: lambda *args: [1.01 * r for r in function(*args)]})
    ladder._choices[key] = replace(choice, engine_at=partial(linearize.Linearization, wrong))
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
