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
    for layer in model:
        if isinstance(layer, nn.Conv2d):
            area = math.prod(layer.kernel_size)
            std = math.sqrt(2 / (area * (layer.in_channels + layer.out_channels)))
            assert layer.weight.std().item() == pytest.approx(std, rel=0.2)
            assert not layer.bias.any()


@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
def test_weight_decay_covers_weights_but_not_biases(problem):
    model = problem.build_model()
    nn.init.constant_(model[-3].bias, 7.0)
    decay = {id(p): g["weight_decay"] for g in problem.parameter_groups(model) for p in g["params"]}
    for name, p in model.named_parameters():
        assert decay[id(p)] == (problem.weight_decay if name.endswith("weight") else 0.0)
    squares = sum((p.double() ** 2).sum().item() for name, p in model.named_parameters() if name.endswith("weight"))
    assert problem.l2_term(model) == pytest.approx(0.5 * problem.weight_decay * squares, rel=1e-5)


@pytest.mark.parametrize(("name", "nearest"), [("digit_cnn", "'digits_cnn'"), ("fmnist", "'fmnist_allcnn'")])
def test_an_unknown_problem_gets_the_nearest_names(name, nearest):
    with pytest.raises(ValueError, match=f"unknown problem '{name}'. Did you mean {nearest}"):
        find_problem(name)


def test_a_name_near_to_none_gets_all():
    with pytest.raises(ValueError, match=f"unknown problem 'zzz'. There are: {', '.join(PROBLEMS)}"):
        find_problem("zzz")
