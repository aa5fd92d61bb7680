"""A small network, a closure for it, and its products with nothing remembered."""

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from latephase.curvature import ggn, ladder
from latephase.curvature.point import evaluate
from latephase.parameters import Parameters
from latephase.transaction import Transaction


def forget_choices():
    """Let the next use of every program be its first."""
    ladder._choices.clear()


def network():
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()


def closure(model, n=6, scale=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 4, generator=generator, dtype=torch.float64)
    y = torch.randint(3, (n,), generator=generator)

    def forward():
        z = scale * model(x)
        return F.cross_entropy(z, y), z

    return forward


def fresh(forward, params, v):
    """The product without anything remembered."""
    forget_choices()
    return ggn(forward, params) @ v


def point_at(forward, params):
    """The point that an engine is built at."""
    parameters = Parameters([{"params": list(params)}])
    transaction = Transaction(parameters)
    point = evaluate(forward, parameters, transaction.repeat())
    transaction.commit()
    return point
