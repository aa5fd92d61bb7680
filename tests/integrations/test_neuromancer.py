"""Steps on a problem of neuromancer, whose loss is a sum of penalties."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from latephase import HessianFree

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from neuromancer.constraint import variable
    from neuromancer.dataset import DictDataset
    from neuromancer.loss import PenaltyLoss
    from neuromancer.modules.blocks import MLP
    from neuromancer.problem import Problem
    from neuromancer.system import Node


def steps(*, bounded: bool, **options: Any) -> list[float]:
    """Fit y = sin(x₁ x₂), perhaps with a penalty where y is above a half; return the losses after each step."""
    torch.manual_seed(0)
    x = torch.randn(64, 2)
    data = DictDataset({"x": x, "t": (x[:, :1] * x[:, 1:]).sin()}, name="train")
    batch = next(iter(DataLoader(data, batch_size=64, collate_fn=data.collate_fn)))
    y, t = variable("y"), variable("t")
    penalties = [10.0 * (y <= 0.5)] if bounded else []
    node = Node(MLP(2, 1, hsizes=[8], nonlin=torch.nn.Tanh), ["x"], ["y"], name="net")
    problem = Problem([node], PenaltyLoss([1.0 * (y == t) ^ 2], penalties))
    opt = HessianFree(problem.parameters(), damping=0.1, **options)

    def closure() -> Tensor:
        opt.zero_grad()
        loss: Tensor = problem(batch)["train_loss"]
        loss.backward()
        return loss

    return [opt.step(closure) for _ in range(5)]


def test_equalities_are_least_squares() -> None:
    losses = steps(bounded=False)
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.5 * losses[0]


def test_inequalities_want_the_hessian() -> None:
    with pytest.raises(ValueError, match=r'Relu is neither linear nor a known loss.*curvature_opt="hessian"'):
        steps(bounded=True)
    losses = steps(bounded=True, curvature_opt="hessian")
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.7 * losses[0]
