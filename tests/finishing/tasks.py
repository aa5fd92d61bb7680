"""Small half-trained networks, in float64 so that comparisons can be sharp."""

import torch
from torch import nn

CLASSES = 3


def network(seed=0, *layers):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 6), *layers, nn.Tanh(), nn.Linear(6, CLASSES)).double()


def examples(count=120, seed=1):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 4, generator=generator, dtype=torch.float64)
    y = x[:, :CLASSES].argmax(dim=1)
    flipped = torch.rand(count, generator=generator) < 0.1
    return x, torch.where(flipped, (y + 1) % CLASSES, y)


def least_squares():
    """An ill-conditioned one without noise: a network, its closure, and the same as inputs and targets."""
    torch.manual_seed(0)
    model = nn.Linear(6, 1, bias=False).double()
    x = torch.randn(40, 6, dtype=torch.float64) * torch.logspace(0, -3, 6, dtype=torch.float64)
    y = x @ torch.ones(6, 1, dtype=torch.float64)

    def closure():
        outputs = model(x)
        return nn.functional.mse_loss(outputs, y), outputs

    return model, closure, (x, y)


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
