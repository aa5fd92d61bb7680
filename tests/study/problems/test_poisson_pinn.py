"""The physics-informed network against automatic differentiation and against the known solution."""

import math
from itertools import pairwise

import pytest
import torch

from latephase import HessianFree
from latephase.study.problems import PROBLEMS
from latephase.study.problems.poisson_pinn import BOUNDARY, INTERIOR, exact
from latephase.study.runs.evaluation import evaluate

PROBLEM = PROBLEMS["poisson_pinn"]
DATA = PROBLEM.load_data(None)


def laplacian(u, points):
    """By differentiating twice."""
    (slopes,) = torch.autograd.grad(u.sum(), points, create_graph=True)
    seconds = [torch.autograd.grad(slopes[:, i].sum(), points, retain_graph=True)[0][:, i] for i in range(2)]
    return seconds[0] + seconds[1]


def network(points, model):
    return model.last(torch.tanh(model.second(torch.tanh(model.first(points)))))[:, 0]


def test_value_and_laplacian():
    model = PROBLEM.build_model()
    points = torch.rand(20, 2, dtype=torch.float64, requires_grad=True)
    expected = network(points, model)
    u, found = model.solution(points.detach())
    torch.testing.assert_close(u, expected)
    torch.testing.assert_close(found, laplacian(expected, points))


def test_the_solution_has_no_residual():
    points = DATA.test.inputs[:, :2].clone().requires_grad_()
    u = exact(points)
    source = 2 * math.pi**2 * u
    torch.testing.assert_close(-laplacian(u, points), source.detach(), rtol=1e-9, atol=1e-9)
    assert exact(DATA.train.inputs[INTERIOR:, :2]).abs().max() < 1e-15


def test_the_loss_is_half_of_both_mean_squares():
    model = PROBLEM.build_model()
    inputs, targets = DATA.train.inputs, DATA.train.targets
    points = inputs[:, :2].clone().requires_grad_()
    u = network(points, model)
    residual = (laplacian(u, points) + 2 * math.pi**2 * exact(points))[:INTERIOR]
    expected = 0.5 * (residual.square().mean() + u[INTERIOR:].square().mean())
    torch.testing.assert_close(PROBLEM.loss(model(inputs), targets), expected)


def test_points():
    for split, inside, edge in ((DATA.train, INTERIOR, BOUNDARY), (DATA.test, 5000, 0)):
        assert len(split) == inside + edge
        assert split.inputs.dtype == split.targets.dtype == torch.float64
        points, on_edge = split.inputs[:, :2], split.inputs[:, 2]
        assert on_edge.tolist() == [0.0] * inside + [1.0] * edge
        assert bool(((points > 0) & (points < 1))[:inside].all())
        assert bool(((points >= 0) & (points <= 1)).all())
        torch.testing.assert_close(split.targets, exact(points))
        sides = [(points[inside:, i] == value).sum().item() for i in range(2) for value in (0, 1)]
        assert sides == [edge // 4] * 4
    assert len(torch.cat([DATA.train.inputs, DATA.test.inputs]).unique(dim=0)) == 6800


def test_points_are_always_the_same():
    torch.manual_seed(7)
    assert torch.equal(PROBLEM.load_data(None).train.inputs, DATA.train.inputs)


def test_metric():
    outputs = torch.stack([torch.randn(5000).double(), 1.1 * DATA.test.targets], dim=1)
    assert PROBLEM.metric.measure(outputs, DATA.test.targets) == pytest.approx(0.1)
    assert not PROBLEM.metric.higher_is_better


def test_parameters():
    model = PROBLEM.build_model()
    assert sum(p.numel() for p in model.parameters()) == 1185
    assert {p.dtype for p in model.parameters()} == {torch.float64}


def test_gradient_descent_descends():
    model = PROBLEM.build_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=PROBLEM.lr)
    losses = []
    for _ in range(50):
        optimizer.zero_grad()
        loss = PROBLEM.loss(model(DATA.train.inputs), DATA.train.targets)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(after < before for before, after in pairwise(losses))


def test_hessian_free_steps_solve_it():
    """Evaluation, too, without gradients."""
    model = PROBLEM.build_model()
    optimizer = HessianFree(PROBLEM.parameter_groups(model))
    batch = (DATA.train.inputs, DATA.train.targets)
    before = evaluate(PROBLEM, model, DATA)
    for _ in range(8):
        optimizer.acc_step(model, PROBLEM.loss, [batch])
    after = evaluate(PROBLEM, model, DATA)
    assert after.train_loss < 0.05 * before.train_loss
    assert after.test_metric < 0.5 * before.test_metric
