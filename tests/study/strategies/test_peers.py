"""Quasi-Newton peers against their definitions, and against what they are written after."""

import copy

import pytest
import scipy.optimize
import torch
from tests.study.toy import TOY, build_model, load_data

from latephase.strategies.first_order import FirstOrder
from latephase.strategies.flat_objective import FlatObjective
from latephase.strategies.muon import MuonAndAdam
from latephase.study.strategies import ssbroyden
from latephase.study.strategies.broyden import Minimiser
from latephase.study.strategies.catalogue import find_strategy
from latephase.study.strategies.scipy_lbfgs import Routine
from latephase.tasks.batches import endless

N = 6


def generator():
    return torch.Generator().manual_seed(3)


def rosenbrock(theta):
    x = theta.clone().requires_grad_()
    value = (100 * (x[1:] - x[:-1].square()).square() + (1 - x[:-1]).square()).sum()
    return value.item(), torch.autograd.grad(value, x)[0]


def test_self_scaled_broyden_minimises_rosenbrocks_function_within_the_evaluations_of_bfgs():
    start = torch.full((10,), -1.0, dtype=torch.float64)
    calls = 0

    def counted(theta):
        nonlocal calls
        calls += 1
        return rosenbrock(theta)

    minimiser = Minimiser(counted, start)
    while rosenbrock(minimiser.theta)[1].norm() > 1e-8:
        minimiser.step()
        assert calls < 500

    def in_numpy(x):
        value, gradient = rosenbrock(torch.tensor(x))
        return value, gradient.numpy()

    assert calls < 1.5 * scipy.optimize.minimize(in_numpy, start.numpy(), jac=True, method="BFGS").nfev
    assert minimiser.theta.sub(1).abs().max() < 1e-7


def test_every_step_lowers_the_objective_and_leaves_positive_curvature():
    minimiser = Minimiser(rosenbrock, torch.full((5,), -1.0, dtype=torch.float64))
    values = [rosenbrock(minimiser.theta)[0]]
    for _ in range(15):
        minimiser.step()
        values.append(rosenbrock(minimiser.theta)[0])
        assert torch.linalg.eigvalsh(minimiser.H).min() > 0
    assert values == sorted(set(values), reverse=True)


def test_where_no_step_is_found_the_memory_is_given_up_and_the_point_kept():
    calls = 0

    def wrong(theta):
        nonlocal calls
        calls += 1
        return float(theta.square().sum()), -theta  # uphill

    start = torch.ones(3, dtype=torch.float64)
    minimiser = Minimiser(wrong, start)
    minimiser.H.mul_(2)
    minimiser.step()
    assert calls > 1
    assert torch.equal(minimiser.theta, start)
    assert torch.equal(minimiser.H, torch.eye(3, dtype=torch.float64))


def test_too_many_parameters_for_a_dense_matrix_are_refused(monkeypatch):
    monkeypatch.setattr(ssbroyden, "MOST", 42)
    strategy = find_strategy("ssbroyden", TOY, 60)
    with pytest.raises(ValueError, match="'ssbroyden' keeps a dense matrix and so takes at most 42 parameters, not 43"):
        strategy.start(TOY, build_model(), load_data(), generator())


# ---------------------------------------------------------------------- SciPy's L-BFGS


def toy_objective(model):
    return FlatObjective(TOY, model, load_data(), 40, generator())


def test_the_flat_objective_is_the_objective():
    torch.manual_seed(0)
    model = build_model()
    objective = toy_objective(model)
    theta = objective.parameters.read()
    loss, gradient = objective(theta)
    batch = next(endless(load_data(), 40, generator()))
    weights = sum(p.square().sum() for p in model.parameters() if p.dim() > 1)
    expected = TOY.loss(model(batch.inputs), batch.targets) + 0.5 * TOY.weight_decay * weights
    assert loss == pytest.approx(expected.item())
    grads = torch.autograd.grad(expected, list(model.parameters()))
    torch.testing.assert_close(gradient, torch.cat([g.flatten() for g in grads]))
    assert objective.work_since(0) == 40 / TOY.batch_size


@pytest.mark.parametrize("history", [3, 20])
def test_scipys_lbfgs_is_scipys_and_remembers_from_step_to_step(history):
    torch.manual_seed(0)
    model = build_model()
    start = toy_objective(model).parameters.read()
    objective = toy_objective(model)
    iterates = []

    def value_and_gradient(x):
        loss, gradient = objective(torch.from_numpy(x))
        return loss, gradient.numpy()

    scipy.optimize.minimize(
        value_and_gradient, start.numpy(), jac=True, method="L-BFGS-B", callback=lambda x: iterates.append(x.copy()),
        options={"maxcor": history, "maxiter": 12, "ftol": 0.0, "gtol": 0.0},
    )  # fmt: skip
    evaluations = objective.evaluations
    again = toy_objective(model)
    routine = Routine(start, history)
    for expected in iterates:
        routine.iterate(again)
        assert torch.equal(routine.theta, torch.from_numpy(expected))
    assert len(iterates) == 12
    assert again.evaluations == evaluations


def test_a_routine_that_has_ended_goes_on_from_where_it_is():
    torch.manual_seed(0)
    objective = toy_objective(build_model())
    routine = Routine(objective.parameters.read(), 20)
    for _ in range(230):
        before, evaluations = objective(routine.theta)[0], objective.evaluations
        routine.iterate(objective)
        assert objective.evaluations > evaluations
        assert objective(routine.theta)[0] <= before + 1e-12
    assert objective(routine.theta)[1].norm() < 1e-6


@pytest.mark.parametrize("name", ["scipy_lbfgs", "ssbroyden"])
def test_a_step_counts_its_evaluations(name):
    torch.manual_seed(0)
    model = build_model()
    strategy = find_strategy(f"{name}(batch=40)", TOY, 60)
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    trainer = strategy.start(TOY, model, load_data(), generator())
    for _ in range(3):
        before = len(calls)
        assert trainer.step(0.0).gradients == (len(calls) - before) * 40 / TOY.batch_size


def test_adam_cosine_is_adam_along_a_cosine():
    strategy = find_strategy("adam_cosine", TOY, 60)
    assert isinstance(strategy, FirstOrder)
    assert (strategy.optimizer, strategy.lr) == (torch.optim.Adam, 0.001)
    trainer = strategy.start(TOY, build_model(), load_data(), generator())
    assert [trainer.step(spent).lr for spent in (0.0, 0.5, 1.0)] == pytest.approx([0.001, 0.0005, 0.0])
    other = find_strategy("adam_cosine(lr=0.01, betas=(0.8, 0.9))", TOY, 60)
    assert isinstance(other, FirstOrder)
    assert other.options == {"betas": (0.8, 0.9)}


def stepped(optimizers, model, steps=3):
    data = load_data().train
    for _ in range(steps):
        model.zero_grad()
        TOY.loss(model(data.inputs), data.targets).backward()
        for optimizer in optimizers:
            optimizer.step()
    return [p.detach().clone() for p in model.parameters()]


def split(model):
    return [{"params": [p for p in model.parameters() if (p.dim() == 2) is matrix]} for matrix in (True, False)]


def test_muon_steps_on_matrices_and_adam_on_the_rest():
    torch.manual_seed(0)
    model, twin = build_model(), build_model()
    twin.load_state_dict(model.state_dict())
    matrices, others = split(twin)
    parts = (
        torch.optim.Muon([matrices], lr=0.01, weight_decay=0.0, momentum=0.8, adjust_lr_fn="match_rms_adamw"),
        torch.optim.Adam([others], lr=0.01),
    )
    found = stepped([MuonAndAdam(split(model), lr=0.01, momentum=0.8)], model)
    assert all(torch.equal(p, q) for p, q in zip(found, stepped(parts, twin), strict=True))


def test_muon_and_adam_go_on_from_a_saved_state():
    torch.manual_seed(0)
    model, twin = build_model(), build_model()
    optimizer = MuonAndAdam(split(model), lr=0.01)
    stepped([optimizer], model)
    twin.load_state_dict(model.state_dict())
    other = MuonAndAdam(split(twin), lr=0.5)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert all(torch.equal(p, q) for p, q in zip(stepped([optimizer], model), stepped([other], twin), strict=True))
