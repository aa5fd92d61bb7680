"""A loss that is no function of (outputs, targets): all of it in a closure."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from latephase.tasks.split import Data, Split
from latephase.tasks.task import Task

Closure = Callable[[], Tensor | tuple[Tensor, Any]]
"""Returns the loss, alone or with the outputs that it is a function of."""


@dataclass(frozen=True, kw_only=True)
class ClosureTask(Task):
    """The loss that a closure computes, always on the same data; they count as one example.

    Attributes:
        closure: Returns the loss, alone or as (loss, outputs).
    """

    closure: Closure

    def forward(self, model: nn.Module, batch: Split) -> tuple[Tensor, Any]:
        """See `Task.forward`; the outputs are None where the closure returns none."""
        returned = self.closure()
        return returned if isinstance(returned, tuple) else (returned, None)


def no_examples(device: torch.device) -> Data:
    """Return what stands for a closure's data: one example without content."""
    nothing = Split(torch.zeros(1, 0, device=device), torch.zeros(1, 0, device=device))
    return Data(nothing, nothing)
