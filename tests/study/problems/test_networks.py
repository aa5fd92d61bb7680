"""The networks of DeepOBS: sizes, shapes, initial weights."""

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from latephase.study.problems import cifar10_3c3d, cifar100_allcnnc, fmnist_2c2d, svhn_wrn164


def wrn_size(channels=(16, 64, 128, 256), classes=10):
    """Parameters of WRN-16-4, counted block by block."""
    total = 3 * channels[0] * 9
    for before, after in pairwise(channels):
        first = 2 * before + before * after * 9 + 2 * after + after * after * 9 + before * after
        second = 2 * (2 * after + after * after * 9)
        total += first + second
    return total + 2 * channels[-1] + channels[-1] * classes + classes


NETWORKS = {
    "cifar10_3c3d": (cifar10_3c3d.build_model, 895_210, 10),
    "cifar100_allcnnc": (cifar100_allcnnc.build_model, 1_387_108, 100),
    "svhn_wrn164": (svhn_wrn164.build_model, wrn_size(), 10),
}


@pytest.fixture(params=NETWORKS)
def network(request):
    torch.manual_seed(0)
    build, size, classes = NETWORKS[request.param]
    return build(), size, classes


def test_number_of_parameters(network):
    model, size, _ = network
    assert sum(p.numel() for p in model.parameters()) == size


def test_outputs(network):
    model, _, classes = network
    outputs = model(torch.randn(2, 3, 32, 32))
    assert outputs.shape == (2, classes)
    assert bool(outputs.isfinite().all())


def test_initial_weights(network):
    """Zero mean, Glorot's variance, bounded where the distribution is uniform."""
    model, _, _ = network
    uniform_convolutions = any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    for module in model.modules():
        if not isinstance(module, nn.Conv2d | nn.Linear):
            continue
        out, into, *window = module.weight.shape
        std = math.sqrt(2 / ((out + into) * math.prod(window)))
        n = module.weight.numel()
        assert abs(module.weight.mean().item()) < 5 * std / math.sqrt(n)
        assert module.weight.std().item() == pytest.approx(std, rel=5 / math.sqrt(n))
        bounded = bool((module.weight.abs() <= math.sqrt(3) * std * (1 + 1e-6)).all())
        assert bounded is (uniform_convolutions or isinstance(module, nn.Linear))


@pytest.mark.parametrize(("name", "value"), [("cifar10_3c3d", 0.0), ("cifar100_allcnnc", 0.1), ("svhn_wrn164", 0.0)])
def test_initial_biases(name, value):
    model = NETWORKS[name][0]()
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    biases = [layer.bias for layer in layers if layer.bias is not None]
    assert len(biases) == (1 if name == "svhn_wrn164" else len(layers))
    assert all(bool((bias == value).all()) for bias in biases)


def test_the_counts_of_parameters_agree():
    assert wrn_size() == 2_748_890


def test_allcnnc_has_dropout_and_a_relu_after_every_convolution():
    layers = list(cifar100_allcnnc.build_model().children())
    assert [layer.p for layer in layers if isinstance(layer, nn.Dropout)] == [0.2, 0.5, 0.5]
    after = [layers[i + 1] for i, layer in enumerate(layers) if isinstance(layer, nn.Conv2d)]
    assert len(after) == 9
    assert all(isinstance(layer, nn.ReLU) for layer in after)


def test_allcnnc_averages_over_the_image():
    model = cifar100_allcnnc.build_model().eval()
    x = torch.randn(2, 3, 32, 32)
    features = model[:-2](x)
    assert features.shape == (2, 100, 6, 6)
    torch.testing.assert_close(model(x), features.mean(dim=(2, 3)))


def test_wrn_block_adds_its_activated_input():
    """With the second convolution at zero the block is its shortcut."""
    block = svhn_wrn164.ResidualBlock(4, 4).eval()
    nn.init.zeros_(block.conv2.weight)
    x = torch.randn(2, 4, 6, 6)
    torch.testing.assert_close(block(x), block.norm1(x).relu())


def test_2c2d():
    """Weights are from a normal distribution that ends at two standard deviations, as TensorFlow's does."""
    model = fmnist_2c2d.build_model()
    assert sum(p.numel() for p in model.parameters()) == 3_274_634
    assert model(torch.randn(2, 1, 28, 28)).shape == (2, 10)
    shrunk = 0.8796  # the standard deviation left by the cut
    for layer in model.children():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            assert layer.weight.abs().max() <= 0.1
            assert layer.weight.std().item() == pytest.approx(0.05 * shrunk, rel=5 / math.sqrt(layer.weight.numel()))
            assert bool((layer.bias == 0.05).all())
