"""A series of any length in at most 128 numbers, and the mean of its last part with a standard error."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

CAPACITY = 128


class Estimate(NamedTuple):
    """A mean and its standard error."""

    mean: float
    error: float


class Blocks:
    """Sums of consecutive blocks of a series: where there are 128 of them, pairs become one, and blocks twice as long.

    So there are always 64 to 127 full blocks (fewer of the first 64 samples), whatever the length: the last part of the
    series is known to a 64th. The block that is being filled is no part of what is estimated.
    """

    def __init__(self) -> None:
        self.size = 1
        self._sums: list[float] = []
        self._partial, self._filled = 0.0, 0

    def add(self, sample: float) -> None:
        """Take the next sample of the series."""
        self._partial += sample
        self._filled += 1
        if self._filled == self.size:
            self._sums.append(self._partial)
            self._partial, self._filled = 0.0, 0
            if len(self._sums) == CAPACITY:
                self._sums = [first + second for first, second in zip(self._sums[::2], self._sums[1::2], strict=True)]
                self.size *= 2

    def window(self, part: float) -> list[float]:
        """Return the means of the blocks in the last `part` of the series, all of the same length, the oldest first."""
        return [total / self.size for total in self._sums[-math.ceil(part * len(self._sums)) :]] if self._sums else []

    def batch_means(self, part: float) -> list[float]:
        """Return the means of batches in the last `part` of n samples: batches of √n, of whole blocks, an even number.

        Batches are longer where blocks are: then there are 32 of them, or as many as `part` has.
        """
        blocks = self.window(part)
        together = max(1, math.ceil(math.sqrt(len(blocks) / self.size)))
        count = len(blocks) // together // 2 * 2
        blocks = blocks[len(blocks) - count * together :]
        return [sum(blocks[i : i + together]) / together for i in range(0, len(blocks), together)]

    def state(self) -> dict[str, int | float | Tensor]:
        """Return numbers and a tensor."""
        sums = torch.tensor(self._sums, dtype=torch.float64)
        return {"size": self.size, "sums": sums, "partial": self._partial, "filled": self._filled}

    def load(self, state: dict[str, int | float | Tensor]) -> None:
        """Go on from a `state`."""
        self.size, self._filled = int(state["size"]), int(state["filled"])
        self._partial, self._sums = float(state["partial"]), torch.as_tensor(state["sums"]).tolist()


def mean(batches: list[float]) -> Estimate:
    """Return the mean of the batches, and its standard error as of independent ones.

    Raises:
        ValueError: If there are fewer than two.
    """
    if len(batches) < 2:
        raise ValueError(f"a standard error takes at least two batches, not {len(batches)}")
    middle = math.fsum(batches) / len(batches)
    squares = math.fsum((batch - middle) ** 2 for batch in batches)
    return Estimate(middle, math.sqrt(squares / (len(batches) - 1) / len(batches)))


def fall(batches: list[float]) -> Estimate:
    """Return by how much the mean of the second half is below that of the first, and the standard error of that.

    Raises:
        ValueError: If there are not at least four, or an odd number.
    """
    if len(batches) < 4 or len(batches) % 2:
        raise ValueError(f"two halves take an even number of at least four batches, not {len(batches)}")
    half = len(batches) // 2
    first, second = mean(batches[:half]), mean(batches[half:])
    return Estimate(first.mean - second.mean, math.hypot(first.error, second.error))
