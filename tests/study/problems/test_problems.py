import math

import pytest
import torch
from torch import nn

from latephase.study.problems import PROBLEMS, find_problem


@pytest.mark.parametrize(
    ("name", "shape", "parameters"), [("digits_cnn", (1, 8, 8), 17_754), ("fmnist_allcnn", (1, 28, 28), 38_570)]
)
def test_networks(name, shape, parameters):
    torch.manual_seed(0)
    model = find_problem(name).build_model()
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert model(torch.randn(3, *shape)).shape == (3, 10)
    for layer in model.children():
        if isinstance(layer, nn.Conv2d):
            area = math.prod(layer.kernel_size)
            std = math.sqrt(2 / (area * (layer.in_channels + layer.out_channels)))
            assert layer.weight.std().item() == pytest.approx(std, rel=0.2)
            assert not layer.bias.any()


def test_the_papers_problems_come_first():
    papers = ["cifar10_3c3d", "cifar100_allcnnc", "svhn_wrn164"]
    poisson = [f"poisson_2d_{size}" for size in ("257", "10k", "116k")]
    equations = [*poisson, "convection", "reaction", "wave", "burgers"]
    fits = ["mnist_autoencoder", "mnist_autoencoder_relu", "friedman1", "morse_cluster"]
    small = ["digits_cnn", "fmnist_2c2d", "fmnist_allcnn", "poisson_pinn"]
    assert list(PROBLEMS) == [*papers, *small, *equations, *fits]
    assert all(PROBLEMS[name].name == name for name in PROBLEMS)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("cifar10_3c3d", (0.067966, 128, 100, 0.002)),
        ("cifar100_allcnnc", (0.171234, 256, 350, 0.0005)),
        ("svhn_wrn164", (0.025378, 128, 160, 0.0005)),
    ],
)
def test_the_papers_settings(name, settings):
    problem = PROBLEMS[name]
    assert (problem.lr, problem.batch_size, problem.epochs, problem.weight_decay) == settings


@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
def test_weight_decay_covers_weights_but_not_biases(problem):
    model = problem.build_model()
    for name, p in model.named_parameters():
        if name.endswith("bias"):
            nn.init.constant_(p, 7.0)
    decay = {id(p): g["weight_decay"] for g in problem.parameter_groups(model) for p in g["params"]}
    weights = [m.weight for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    expected = {id(p): problem.weight_decay for p in weights}
    assert decay == {id(p): expected.get(id(p), 0.0) for p in model.parameters()}
    squares = sum((p.double() ** 2).sum().item() for p in weights)
    assert problem.l2_term(model) == pytest.approx(0.5 * problem.weight_decay * squares, rel=1e-5)


@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
def test_every_problem_says_where_it_comes_from(problem):
    assert problem.source


@pytest.mark.parametrize(("name", "nearest"), [("digit_cnn", "'digits_cnn'"), ("fmnist", "'fmnist_2c2d'")])
def test_an_unknown_problem_gets_the_nearest_names(name, nearest):
    with pytest.raises(ValueError, match=f"unknown problem '{name}'. Did you mean .*{nearest}"):
        find_problem(name)


def test_a_name_near_to_none_gets_all():
    with pytest.raises(ValueError, match=f"unknown problem 'zzz'. There are: {', '.join(PROBLEMS)}"):
        find_problem("zzz")
