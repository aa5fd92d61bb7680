"""Drawing mini-batches at random."""

from collections.abc import Iterator
from typing import NamedTuple

import torch

from latephase.study.data import Split


def endless(split: Split, size: int, generator: torch.Generator) -> Iterator[Split]:
    """Yield batches of ``size`` examples for ever, pass after pass, each in a fresh random order.

    What does not fill the last batch of a pass is left out of it.

    Raises:
        ValueError: If ``split`` has fewer than ``size`` examples (when the first batch is asked for).
    """
    if not 1 <= size <= len(split):
        raise ValueError(f"a batch of {size} cannot be drawn from {len(split)} examples")
    while True:
        order = torch.randperm(len(split), generator=generator)
        for start in range(0, len(split) - size + 1, size):
            yield split.take(order[start : start + size])


class HFBatches(NamedTuple):
    """What one Hessian-free step works on; the gradient is taken on ``curvature`` and ``gradient_only`` together."""

    curvature: Split
    gradient_only: Split
    evaluation: Split


def hessian_free(
    split: Split, *, curvature: int, gradient: int, evaluation: int, generator: torch.Generator
) -> Iterator[HFBatches]:
    """Yield batches for Hessian-free steps for ever, each drawn afresh.

    The evaluation batch is disjoint from the curvature batch, and from the gradient batch as far as the data
    suffice: with ``gradient = len(split)`` the gradient is that of all the data.

    That is what a small data set wants. There, examples set aside are no fresh sample: near a minimum the gradient of
    the whole vanishes, so those of a part and of its complement point in opposite directions, and a step that follows
    one is judged by the other.

    Args:
        split: What to draw from.
        curvature: Size of the curvature batch.
        gradient: Size of the gradient batch, which contains the curvature batch.
        evaluation: Size of the evaluation batch.
        generator: What to draw with.

    Raises:
        ValueError: If ``split`` is too small (when the first batches are asked for).
    """
    if not curvature <= gradient <= len(split) or curvature + evaluation > len(split):
        raise ValueError(
            f"batches for curvature ({curvature}), gradient ({gradient}) and evaluation ({evaluation}) "
            f"cannot be drawn from {len(split)} examples"
        )
    while True:
        order = torch.randperm(len(split), generator=generator)
        yield HFBatches(
            curvature=split.take(order[:curvature]),
            gradient_only=split.take(order[curvature:gradient]),
            evaluation=split.take(order[len(split) - evaluation :]),
        )
