"""Drawing mini-batches at random."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from latephase.study.data import Data, Split

_CHUNK = 2048  # examples per forward pass: what a small machine's memory holds with the graph


def endless(data: Data, size: int, generator: torch.Generator) -> Iterator[Split]:
    """Yield batches of ``size`` training examples for ever, pass after pass, each in a fresh random order.

    What does not fill the last batch of a pass is left out of it.

    Raises:
        ValueError: If there are fewer than ``size`` examples (when the first batch is asked for).
    """
    n = len(data.train)
    if not 1 <= size <= n:
        raise ValueError(f"a batch of {size} cannot be drawn from {n} examples")
    while True:
        order = torch.randperm(n, generator=generator)
        for start in range(0, n - size + 1, size):
            yield _augmented(data, order[start : start + size], generator)


def chunks(batch: Split) -> list[tuple[Tensor, Tensor]]:
    """Cut a batch into pairs of inputs and targets, each small enough for one forward pass."""
    pairs = zip(batch.inputs.split(_CHUNK), batch.targets.split(_CHUNK), strict=True)
    return [(inputs, targets) for inputs, targets in pairs if len(targets)]


class HFBatches(NamedTuple):
    """What one Hessian-free step works on; the gradient is taken on ``curvature`` and ``gradient_only`` together."""

    curvature: Split
    gradient_only: Split
    evaluation: Split


def hessian_free(
    data: Data, *, curvature: int, gradient: int, evaluation: int, generator: torch.Generator, same: bool = False
) -> Iterator[HFBatches]:
    """Yield batches of training examples for Hessian-free steps for ever, each drawn afresh.

    The evaluation batch is disjoint from the curvature batch, and from the gradient batch as far as the data
    suffice: with ``gradient`` the number of all examples, the gradient is that of all the data.

    That is what a small data set wants. There, examples set aside are no fresh sample: near a minimum the gradient of
    the whole vanishes, so those of a part and of its complement point in opposite directions, and a step that follows
    one is judged by the other.

    Curvature and gradient batch share their examples as augmented, too.

    Args:
        data: What to draw from.
        curvature: Size of the curvature batch.
        gradient: Size of the gradient batch, which contains the curvature batch.
        evaluation: Size of the evaluation batch.
        generator: What to draw with.
        same: Whether the gradient batch is the evaluation batch, too, so that a step judges itself by the examples
            that it was made from. Then ``evaluation`` means nothing.

    Raises:
        ValueError: If there are too few examples (when the first batches are asked for).
    """
    n = len(data.train)
    if not 1 <= curvature <= gradient <= n or (not same and not 1 <= evaluation <= n - curvature):
        raise ValueError(
            f"batches for curvature ({curvature}), gradient ({gradient}) and evaluation "
            f"({'the same' if same else evaluation}) cannot be drawn from {n} examples"
        )
    while True:
        order = torch.randperm(n, generator=generator)
        shared = _augmented(data, order[:curvature], generator)
        rest = _augmented(data, order[curvature:gradient], generator)
        judge = _joined(shared, rest) if same else _augmented(data, order[n - evaluation :], generator)
        yield HFBatches(shared, rest, judge)


def _augmented(data: Data, index: Tensor, generator: torch.Generator) -> Split:
    batch = data.train.take(index)
    return batch if data.augment is None else Split(data.augment(batch.inputs, generator), batch.targets)


def _joined(first: Split, second: Split) -> Split:
    if len(second) == 0:
        return first
    return Split(torch.cat([first.inputs, second.inputs]), torch.cat([first.targets, second.targets]))
