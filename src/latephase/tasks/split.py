"""Examples to train and to test on."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils import _pytree as pytree


class DataError(RuntimeError):
    """Data are missing, damaged or not what their name promises. The message names the file, folder or data set."""


@dataclass(frozen=True)
class Split:
    """Examples: `inputs` and `targets`, tensors (or structures of tensors) whose first dimension counts them.

    For images, `inputs` are [N, C, H, W] (float32, normalised) and `targets` [N] (int64).

    >>> split = Split(torch.randn(10, 3), torch.arange(10))
    >>> len(split), split.take(slice(0, 2)).targets
    (10, tensor([0, 1]))
    """

    inputs: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(pytree.tree_leaves(self.targets)[0])

    def take(self, index: Tensor | slice) -> "Split":
        """Return the examples at `index`."""

        def taken(leaf: Tensor) -> Tensor:
            # Else indexing would wait until the device has done all that it has been told to.
            return leaf[index.to(leaf.device, non_blocking=True) if isinstance(index, Tensor) else index]

        return Split(*pytree.tree_map(taken, (self.inputs, self.targets)))

    def to(self, device: torch.device) -> "Split":
        """Return the same examples on `device`."""
        return Split(self.inputs.to(device), self.targets.to(device))


Augmentation = Callable[[Tensor, torch.Generator], Tensor]
"""Maps training inputs to changed ones of the same shape, with random numbers from a generator on the CPU."""


@dataclass(frozen=True)
class Data:
    """A data set: two splits, and how training inputs are varied whenever they are drawn (None: not at all).

    >>> x, y = torch.randn(10, 3), torch.arange(10)
    >>> data = Data(train=Split(x[:8], y[:8]), test=Split(x[8:], y[8:]))
    >>> len(data.train), data.augment
    (8, None)
    """

    train: Split
    test: Split
    augment: Augmentation | None = None

    def to(self, device: torch.device) -> "Data":
        """Return the same data on `device`."""
        return Data(self.train.to(device), self.test.to(device), self.augment)
