"""The paper's problems from their files to a step of each optimizer, on a few images of the hub's schema."""

import datasets
import pytest
import torch
from tests.study.data.hub_files import SOURCES, write_copy

from latephase import HessianFree
from latephase.study.problems import PROBLEMS
from latephase.study.runs.evaluation import evaluate
from latephase.tasks import batches

DATA_SETS = {
    "cifar10_3c3d": "cifar10",
    "cifar100_allcnnc": "cifar100",
    "svhn_wrn164": "svhn",
    "fmnist_2c2d": "fashion_mnist",
}


@pytest.mark.parametrize("name", DATA_SETS)
def test_both_optimizers_take_steps(name, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    write_copy(SOURCES[DATA_SETS[name]], tmp_path, n_train=24, n_test=6)
    problem = PROBLEMS[name]
    data = problem.load_data(tmp_path)
    model = problem.build_model()
    start = torch.nn.utils.parameters_to_vector(model.parameters()).detach().clone()

    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.SGD([dict(group) for group in problem.parameter_groups(model)], lr=problem.lr)
    stream = batches.endless(data, 8, generator)
    for _ in range(3):
        batch = next(stream)
        optimizer.zero_grad()
        problem.loss(model(batch.inputs), batch.targets).backward()
        optimizer.step()
    trained = torch.nn.utils.parameters_to_vector(model.parameters()).detach().clone()
    assert not torch.equal(trained, start)

    second_order = HessianFree([dict(group) for group in problem.parameter_groups(model)], cg_max_iter=2)
    shares = next(batches.hessian_free(data, curvature=8, gradient=8, evaluation=0, same=True, generator=generator))
    second_order.acc_step(model, problem.loss, [(shares.evaluation.inputs, shares.evaluation.targets)])
    assert second_order.last_step.loss_after < second_order.last_step.loss_before
    assert not torch.equal(torch.nn.utils.parameters_to_vector(model.parameters()), trained)

    quality = evaluate(problem, model, data)
    assert all(torch.tensor([quality.train_loss, quality.test_loss]).isfinite())
    assert 0 <= quality.test_metric <= 1
