"""Equations as problems: the known solution solves each, and optimizers of every kind get hold of the network."""

from dataclasses import replace

import pytest
import torch
from tests.study.toy import silent

from latephase import HessianFree
from latephase.curvature import ggn
from latephase.study.data import Data
from latephase.study.problems import PROBLEMS, burgers, convection, poisson_2d, reaction, wave
from latephase.study.problems.pinn import FRESH, of_kind
from latephase.study.problems.tanh_network import Jet
from latephase.study.runs.evaluation import evaluate
from latephase.study.runs.training import train

SMALL = {
    "poisson_2d_257": poisson_2d.poisson_2d("poisson_2d_257", (8,)),
    "convection": convection.convection(8, 200),
    "reaction": reaction.reaction(8, 200),
    "wave": wave.wave(8, 200),
    "burgers": burgers.burgers(8, 200),
}
COUNTS = {
    "poisson_2d_257": (900, 120),
    "poisson_2d_10k": (900, 120),
    "poisson_2d_116k": (900, 120),
    "convection": (10_000, 257, 101),
    "reaction": (10_000, 257, 101),
    "wave": (10_000, 257, 257, 101, 101),
    "burgers": (10_000, 50, 50),
}
PARAMETERS = {
    "poisson_2d_257": 257,
    "poisson_2d_10k": 9873,
    "poisson_2d_116k": 116_097,
    "convection": 81_201,
    "reaction": 81_201,
    "wave": 81_201,
    "burgers": 3021,
}


def equation(problem):
    return problem.build_model().equation


def exact_jet(solution, points, coefficients):
    """Of the known solution, by differentiating twice."""
    x = points.clone().requires_grad_()
    u = solution(x)
    (slopes,) = torch.autograd.grad(u.sum(), x, create_graph=True)
    seconds = [torch.autograd.grad(slopes[:, i].sum(), x, retain_graph=True)[0][:, i] for i in range(2)]
    return Jet(u, slopes.T, sum(c * second for c, second in zip(coefficients, seconds, strict=True)))


@pytest.mark.parametrize("name", SMALL)
def test_the_solution_has_no_residual(name):
    problem = SMALL[name]
    what, rows = equation(problem), problem.load_data(None).train.inputs
    jet = exact_jet(what.solution, rows[:, :2], what.coefficients)
    of_kinds = what.residuals(rows[:, :2], jet, what.solution)
    assert len(of_kinds) == len(COUNTS[name]) == len(rows[:, 2].unique())
    at_start = rows[:, 1] == 0  # where the solution of Burgers' equation cannot be differentiated as it is written
    scale = jet.slopes[:, ~at_start].abs().max() + jet.second[~at_start].abs().max()
    for kind, residual in enumerate(of_kinds):
        assert residual[rows[:, 2] == kind].abs().max() < 1e-9 * scale


@pytest.mark.parametrize("name", SMALL)
def test_the_loss_is_half_the_sum_of_the_mean_squares_of_each_kind(name):
    problem = SMALL[name]
    torch.manual_seed(0)
    model, data = problem.build_model(), problem.load_data(None)
    rows = data.train.inputs
    what, network = model.equation, model.network
    of_kinds = what.residuals(rows[:, :2], exact_jet(network, rows[:, :2], what.coefficients), network)
    means = [residual[rows[:, 2] == kind].square().mean() for kind, residual in enumerate(of_kinds)]
    torch.testing.assert_close(problem.loss(model(rows), data.train.targets), 0.5 * sum(means))
    torch.testing.assert_close(model(rows)[:, 1], network(rows[:, :2]))


def test_a_periodic_condition_compares_both_edges():
    torch.manual_seed(0)
    model = SMALL["convection"].build_model()
    t = torch.linspace(0, 1, 5, dtype=torch.float64)
    left, right = (torch.stack([torch.full_like(t, x), t], dim=1) for x in (0.0, 2 * torch.pi))
    expected = model.weights[2] * (model.network(left) - model.network(right))
    torch.testing.assert_close(model(of_kind(left, 2))[:, 0], expected)


@pytest.mark.parametrize("name", COUNTS)
def test_points_and_network(name):
    problem = PROBLEMS[name]
    data = problem.load_data(None)
    assert tuple((data.train.inputs[:, 2] == kind).sum().item() for kind in range(len(COUNTS[name]))) == COUNTS[name]
    assert len(data.train) == problem.batch_size == problem.gradient_batch
    assert len(data.test) == FRESH
    assert data.train.inputs.dtype == data.train.targets.dtype == torch.float64
    assert not data.test.inputs[:, 2].any()
    torch.manual_seed(7)
    assert torch.equal(problem.load_data(None).train.inputs, data.train.inputs)
    trained, fresh = ({tuple(row) for row in split.inputs[:, :2].tolist()} for split in (data.train, data.test))
    assert not trained & fresh
    model = problem.build_model()
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]
    assert {p.dtype for p in model.parameters()} == {torch.float64}


@pytest.mark.parametrize("name", ["convection", "reaction", "wave"])
def test_points_are_those_of_a_grid(name):
    inputs = PROBLEMS[name].load_data(None).train.inputs
    inside = inputs[inputs[:, 2] == 0]
    high = inputs[:, 0].max()
    for column, cells, end in ((0, 256, high), (1, 100, 1.0)):
        steps = inside[:, column] * cells / end
        torch.testing.assert_close(steps, steps.round(), rtol=0, atol=1e-9)
        assert steps.min() > 0.5
    assert inside[:, 0].max() < high
    assert len(inside.unique(dim=0)) == 10_000


@pytest.mark.parametrize("name", SMALL)
def test_metric(name):
    problem = SMALL[name]
    targets = problem.load_data(None).test.targets
    assert problem.metric.measure(torch.stack([torch.ones_like(targets), targets], dim=1), targets) == 0
    assert problem.metric.measure(torch.stack([targets, 0.9 * targets], dim=1), targets) == pytest.approx(0.1)
    assert not problem.metric.higher_is_better


def test_the_solution_of_burgers_equation_is_steep_in_the_middle_and_odd():
    x, t = torch.linspace(-1, 1, 21, dtype=torch.float64), torch.linspace(0, 1, 5, dtype=torch.float64)
    u = burgers.solution(torch.cartesian_prod(x, t)).view(21, 5)
    torch.testing.assert_close(u[:, 0], -torch.sin(torch.pi * x))
    torch.testing.assert_close(u, -u.flip(0), rtol=0, atol=1e-12)
    assert u[[0, 10, 20]].abs().max() < 1e-12
    # Basdevant et al. 1986: the slope at the origin is largest at t = 1.6037/π, and is 152.00516 there.
    h = 1e-5
    points = torch.tensor([[-h, 1.6037 / torch.pi], [h, 1.6037 / torch.pi]], dtype=torch.float64)
    below, above = burgers.solution(points)
    assert (above - below) / (2 * h) == pytest.approx(-152.00516, rel=1e-5)


@pytest.mark.parametrize("name", SMALL)
def test_the_first_phase_lowers_the_loss(name):
    problem = replace(SMALL[name], epochs=30)
    curve = train(problem, few(problem.load_data(None)), epochs=30, seed=0, progress=silent, keep=lambda *_: None)
    assert curve[-1].train_loss < curve[0].train_loss
    assert {point.lr for point in curve} == {0.001}


def few(data):
    """The same to train on, and fewer to test on."""
    return Data(data.train, data.test.take(slice(50)))


@pytest.mark.parametrize("name", SMALL)
def test_hessian_free_steps_use_the_fast_products_and_lower_the_loss(name):
    problem, data = SMALL[name], few(SMALL[name].load_data(None))
    torch.manual_seed(0)
    model = problem.build_model()
    batch = data.train.inputs, data.train.targets

    def forward():
        outputs = model(batch[0])
        return problem.loss(outputs, batch[1]), outputs

    operator = ggn(forward, list(model.parameters()))
    operator @ torch.ones(sum(p.numel() for p in model.parameters()), dtype=torch.float64)
    assert operator.backend == "linearize"
    before = evaluate(problem, model, data).train_loss
    optimizer = HessianFree([dict(group) for group in problem.parameter_groups(model)], cg_max_iter=20)
    for _ in range(3):
        optimizer.acc_step(model, problem.loss, [batch])
    assert evaluate(problem, model, data).train_loss < 0.9 * before


def test_an_equation_without_a_second_derivative_costs_none():
    network = SMALL["convection"].build_model().network
    jet = network.jet(torch.rand(3, 2, dtype=torch.float64), (0.0, 0.0))
    assert jet.second.tolist() == [0.0] * 3
    assert not jet.second.requires_grad
