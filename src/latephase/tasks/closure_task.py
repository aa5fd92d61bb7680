"""A loss that is no function of (outputs, targets): all of it in a closure."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from latephase.tasks.split import Data, Split
from latephase.tasks.task import Task

Closure = Callable[[], tuple[Tensor, Tensor]]
"""Returns the loss and the outputs that it is a function of."""


@dataclass(frozen=True, kw_only=True)
class ClosureTask(Task):
    """The loss that a closure computes, always on the same data; they count as one example.

    Attributes:
        closure: Returns (loss, outputs).
    """

    closure: Closure

    def forward(self, model: nn.Module, batch: Split) -> tuple[Tensor, Tensor]:
        """See `Task.forward`."""
        return self.closure()


def no_examples(device: torch.device) -> Data:
    """Return what stands for a closure's data: one example without content."""
    nothing = Split(torch.zeros(1, 0, device=device), torch.zeros(1, 0, device=device))
    return Data(nothing, nothing)
