"""Gradients and losses of several processes become their means; of one alone they stay what they are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.ranks import together
from torch import Tensor, nn

from latephase.distributed import ALONE, RankError, find_ranks
from latephase.tasks.together import mean_gradient


def parameters() -> list[Tensor]:
    return [
        nn.Parameter(torch.ones(2, 2)),
        nn.Parameter(torch.ones(3, dtype=torch.float64)),
        nn.Parameter(torch.ones(1)),
    ]


def gradient_on(rank: int, theta: list[Tensor]) -> Tensor:
    """The first has a gradient on all ranks, the second on rank 1 alone, the third on none."""
    theta[0].grad = torch.full((2, 2), 1.0 + rank)
    theta[1].grad = torch.tensor([3.0, 0.0, 1.0], dtype=torch.float64) if rank == 1 else None
    theta[2].grad = None
    return torch.tensor(10.0 * rank)


def program(rank: int) -> tuple[list[Tensor | None], Tensor, str]:
    """Once well, and once with a failure of rank 1."""
    theta = parameters()
    cpu = torch.device("cpu")
    loss = mean_gradient(find_ranks("world", cpu), theta, lambda: gradient_on(rank, theta))
    grads = [p.grad for p in theta]

    def fails() -> Tensor:
        if rank == 1:
            raise ArithmeticError("no gradient here")
        return gradient_on(rank, theta)

    with pytest.raises((ArithmeticError, RankError), match="no gradient here") as error:
        mean_gradient(find_ranks("world", cpu), theta, fails)
    return grads, loss, error.type.__name__


def test_they_are_means_over_all(tmp_path: Path) -> None:
    found = together(2, tmp_path, program)
    assert [error for *_, error in found] == ["RankError", "ArithmeticError"]
    for (first, second, third), loss, _ in found:
        assert torch.equal(loss, torch.tensor(5.0))
        assert torch.equal(first, torch.full((2, 2), 1.5))
        assert torch.equal(second, torch.tensor([1.5, 0.0, 0.5], dtype=torch.float64))
        assert third is None  # no rank has one


def test_one_alone_keeps_what_it_has() -> None:
    theta = parameters()
    loss = mean_gradient(ALONE, theta, lambda: gradient_on(1, theta))
    assert float(loss) == 10.0
    assert theta[0].grad is not None
    assert torch.equal(theta[0].grad, torch.full((2, 2), 2.0))
