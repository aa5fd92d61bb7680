"""Batches in parts: closures over micro-batches, whose weighted losses add up to the loss on their union."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from latephase.checks import function, non_negative, pairs
from latephase.curvature.returned import Forward
from latephase.distributed import ALONE, Ranks

Pair = tuple[object, object]
Model = Callable[..., object]
LossFunction = Callable[..., Tensor]
Reduction = str | Callable[..., float]


class MicroBatch(NamedTuple):
    """A closure over a part of a batch, and the weight of its loss in the batch's loss."""

    forward: Forward
    weight: float = 1.0


class Batches(NamedTuple):
    """What one step sees of the data, in micro-batches.

    Attributes:
        gradient: The model batch B, for the gradient.
        curvature: B, for the curvature.
        evaluation: The evaluation batch B̄.
    """

    gradient: Sequence[MicroBatch]
    curvature: Sequence[MicroBatch]
    evaluation: Sequence[MicroBatch]


def shared(name: str, weight: object, ranks: Ranks) -> float:
    """Return a rank's weight over the sum of all ranks'; 1 for a rank alone.

    Raises:
        TypeError: If the weight is not a number.
        ValueError: If it is negative or not finite, or all are 0.
    """
    own = non_negative(name, weight)
    total = ranks.number(f"the sum of {name}", lambda: own)
    if total == 0.0:
        raise ValueError(f"{name} must not be 0 for all")
    return own / total


class Cutter:
    """Makes closures from lists of `(inputs, targets)`.

    A micro-batch that stands in several lists has one closure, so that the graph of one forward pass can serve all.

    Args:
        model: Maps inputs to outputs.
        loss_func: Maps `(outputs, targets)` to the loss.
        reduction: How `loss_func` reduces over samples: `"sum"`; `"mean"`, which weights each micro-batch by
            `targets.shape[0]`; or a function `targets -> weight` for losses that are means over something else,
            such as the tokens that are not padding.
        device: Inputs and targets are moved there when they are used.
        ranks: The processes that have other micro-batches of the same batch.

    Raises:
        TypeError: If model or loss function cannot be called.
        ValueError: If the reduction is neither of the words nor a function.
    """

    def __init__(
        self,
        model: Model,
        loss_func: LossFunction,
        reduction: Reduction,
        device: torch.device,
        ranks: Ranks = ALONE,
    ) -> None:
        self._ranks = ranks
        self._model = function("model", model)
        self._loss_func = function("loss_func", loss_func)
        if reduction not in ("mean", "sum") and not callable(reduction):
            raise ValueError(f'reduction must be "mean", "sum" or a function targets -> weight, not {reduction!r}')
        self._reduction = reduction
        self._device = device
        self._closures: dict[int, Forward] = {}

    def __call__(self, name: str, datalist: Sequence[Pair]) -> list[MicroBatch]:
        """Return the micro-batches of a list; `name` is what the user calls it.

        Raises:
            TypeError: If it is no list of pairs, or its weights cannot be told from the targets.
            ValueError: If it is empty, or all its weights are 0.
        """
        entries = pairs(name, datalist)
        counts = [_weight(targets, self._reduction) for _, targets in entries]
        total = 1.0
        if self._reduction != "sum":
            total = self._ranks.number(f"the sum of weights of {name}", lambda: float(sum(counts)))
        if total == 0.0:
            raise ValueError(f"reduction={self._reduction!r} gives all micro-batches the weight 0")
        for entry in entries:
            self._closures.setdefault(id(entry), self._closure(entry))
        return [MicroBatch(self._closures[id(entry)], n / total) for entry, n in zip(entries, counts, strict=True)]

    def _closure(self, entry: Pair) -> Forward:
        def forward() -> tuple[Tensor, object]:
            inputs, targets = entry  # The entry lives for as long as its closure, so that no id is used twice.
            outputs = self._model(_moved(inputs, self._device))
            return self._loss_func(outputs, _moved(targets, self._device)), outputs

        return forward


def _weight(targets: object, reduction: Reduction) -> float:
    if callable(reduction):
        return non_negative("the weight that reduction returns", reduction(targets))
    if reduction == "sum":
        return 1.0
    if not isinstance(targets, Tensor) or targets.dim() == 0:
        raise TypeError(
            'with reduction="mean" the targets must be tensors whose first dimension counts the samples, '
            f"not {type(targets).__name__}; give reduction a function targets -> weight"
        )
    return float(targets.shape[0])


def _moved(data: object, device: torch.device) -> object:
    return pytree.tree_map(lambda leaf: leaf.to(device) if hasattr(leaf, "to") else leaf, data)
