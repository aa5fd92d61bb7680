"""The smaller equations: their sizes, and that those in float32 are the same problems."""

import pytest
import torch
from benchmarks import equations

SIZES = {"convection": (3441, 2358), "reaction": (3441, 2358), "wave": (3441, 2716), "burgers": (3021, 2100)}


@pytest.mark.parametrize("name", SIZES)
def test_they_are_as_large_as_they_say(name):
    problem = getattr(equations, name)()
    parameters = sum(p.numel() for p in problem.build_model().parameters())
    assert (parameters, len(problem.load_data(None).train)) == SIZES[name]
    assert f"{parameters:,} parameters, {SIZES[name][1]:,} residuals" in getattr(equations, name).__doc__


@pytest.mark.parametrize("name", SIZES)
def test_in_float32_the_loss_is_the_same_but_for_rounding(name):
    double, single = getattr(equations, name)(), getattr(equations, f"{name}_single")()
    assert single.name == f"{double.name}_single"
    losses = []
    for problem in double, single:
        torch.manual_seed(0)
        model, data = problem.build_model(), problem.load_data(None)
        assert {p.dtype for p in model.parameters()} == {data.train.inputs.dtype, data.train.targets.dtype}
        losses.append(problem.loss(model(data.train.inputs), data.train.targets))
    assert [loss.dtype for loss in losses] == [torch.float64, torch.float32]
    torch.testing.assert_close(losses[1].double(), losses[0], rtol=1e-5, atol=0.0)


@pytest.mark.parametrize(
    ("build", "parameters"), [(equations.poisson_many, 9873), (equations.poisson_116k_many, 116_097)]
)
def test_many_points_are_those_of_the_square(build, parameters):
    problem = build()
    assert sum(p.numel() for p in problem.build_model().parameters()) == parameters
    inputs = problem.load_data(None).train.inputs
    points, kind = inputs[:, :2], inputs[:, 2]
    on_edge = ((points == 0.0) | (points == 1.0)).any(dim=1)
    assert len(inputs) == 11_250
    assert torch.equal(on_edge, kind == 1.0)
    assert on_edge.sum() == 1250
