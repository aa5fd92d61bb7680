"""Drawing mini-batches at random."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from latephase.tasks.split import Data, Split

_CHUNK = 2048  # examples per forward pass: what a small machine's memory holds with the graph


class endless:  # noqa: N801 — used like a function
    """Batches of `size` training examples for ever, pass after pass, each in a fresh random order.

    What does not fill the last batch of a pass is left out of it. The generator's state is not part of theirs.

    Args:
        data: What to draw from.
        size: Examples per batch.
        generator: What to draw with.

    Raises:
        ValueError: If there are fewer than `size` examples.

    >>> x = torch.arange(4.0)
    >>> stream = endless(Data(Split(x, x), Split(x, x)), 2, torch.Generator().manual_seed(0))
    >>> sorted(torch.cat([next(stream).inputs, next(stream).inputs]).tolist())
    [0.0, 1.0, 2.0, 3.0]
    """

    def __init__(self, data: Data, size: int, generator: torch.Generator) -> None:
        if not 1 <= size <= len(data.train):
            raise ValueError(f"a batch of {size} cannot be drawn from {len(data.train)} examples")
        self._data, self._size, self._generator = data, size, generator
        self._order = torch.empty(0, dtype=torch.int64)
        self._at = 0

    def __iter__(self) -> "endless":
        """Return itself."""
        return self

    def __next__(self) -> Split:
        """Draw the next batch."""
        if self._at + self._size > len(self._order):
            self._order, self._at = torch.randperm(len(self._data.train), generator=self._generator), 0
        index = self._order[self._at : self._at + self._size]
        self._at += self._size
        return _augmented(self._data, index, self._generator)

    def state_dict(self) -> dict[str, Any]:
        """Return the order of this pass, and how much of it has been drawn."""
        return {"order": self._order, "at": self._at}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self._order, self._at = state["order"], state["at"]


def chunks(batch: Split) -> list[Split]:
    """Cut a batch into parts, each small enough for one forward pass."""
    return [batch.take(slice(start, start + _CHUNK)) for start in range(0, len(batch), _CHUNK)]


class HFBatches(NamedTuple):
    """What one Hessian-free step works on; the gradient is taken on `curvature` and `gradient_only` together."""

    curvature: Split
    gradient_only: Split
    evaluation: Split


def hessian_free(
    data: Data, *, curvature: int, gradient: int, evaluation: int, generator: torch.Generator, same: bool = False
) -> Iterator[HFBatches]:
    """Yield batches of training examples for Hessian-free steps for ever, each drawn afresh.

    The evaluation batch is disjoint from the curvature batch, and from the gradient batch as far as the data
    suffice: with `gradient` the number of all examples, the gradient is that of all the data.

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
            that it was made from. Then `evaluation` means nothing.

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
    joined = pytree.tree_map(
        lambda one, other: torch.cat([one, other]), *((part.inputs, part.targets) for part in (first, second))
    )
    return Split(*joined)
