"""Lists of micro-batches become closures whose weights add up to the reduction of the loss."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from latephase.micro_batches import Cutter

CPU = torch.device("cpu")


def pair(n: int) -> tuple[Tensor, Tensor]:
    return torch.randn(n, 3), torch.randn(n, 2)


@pytest.mark.parametrize(
    ("reduction", "weights"),
    [("mean", [0.25, 0.75]), ("sum", [1.0, 1.0]), (lambda targets: float(len(targets) ** 2), [0.1, 0.9])],
)
def test_weights(reduction: Any, weights: list[float]) -> None:
    cut = Cutter(nn.Linear(3, 2), mse_loss, reduction, CPU)
    assert [part.weight for part in cut("datalist", [pair(2), pair(6)])] == pytest.approx(weights)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_weighted_losses_add_up_to_that_of_the_union(reduction: Any) -> None:
    model, parts = nn.Linear(3, 2), [pair(2), pair(6)]
    cut = Cutter(model, lambda z, y: mse_loss(z, y, reduction=reduction), reduction, CPU)
    total = sum(part.weight * first(part.forward()) for part in cut("datalist", parts))
    x, y = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    torch.testing.assert_close(total, first(cut("datalist", [(x, y)])[0].forward()))


def first(returned: Any) -> Tensor:
    return returned[0]


def test_one_closure_for_a_micro_batch_that_stands_in_two_lists() -> None:
    cut = Cutter(nn.Linear(3, 2), mse_loss, "mean", CPU)
    shared, other = pair(2), pair(2)
    (one, _), (two,) = cut("grad_datalist", [shared, other]), cut("mvp_datalist", [shared])
    assert one.forward is two.forward


@pytest.mark.parametrize(
    ("reduction", "targets", "error", "words"),
    [
        ("mean", torch.tensor(1.0), TypeError, "first dimension counts the samples"),
        ("mean", None, TypeError, "NoneType"),
        (lambda targets: 0.0, torch.ones(2), ValueError, "the weight 0"),
        (lambda targets: -1.0, torch.ones(2), ValueError, "the weight that reduction returns must be ≥ 0"),
    ],
)
def test_weights_that_cannot_be_told(reduction: Any, targets: object, error: type[Exception], words: str) -> None:
    cut = Cutter(nn.Linear(3, 2), mse_loss, reduction, CPU)
    with pytest.raises(error, match=words):
        cut("datalist", [(torch.ones(2, 3), targets)])
