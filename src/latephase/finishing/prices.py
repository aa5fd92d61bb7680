"""What steps cost, before they are taken: in gradients, and in shares of a budget."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import nn
from torch.utils import _pytree as pytree

from latephase.curvature import CurvatureError, ggn
from latephase.finishing.judge import training_undisturbed, undisturbed
from latephase.parts.auto import Auto
from latephase.parts.direct import in_gradients, matrix_size
from latephase.tasks.closure_task import ClosureTask
from latephase.tasks.split import Split
from latephase.tasks.task import Task


class TooDearError(ValueError):
    """A step costs more than it may.

    Args:
        share: Of the budget, that a step costs about.
        most: The share that it may cost.

    Attributes:
        share: The same.
    """

    def __init__(self, share: float, most: float) -> None:
        super().__init__(f"a step costs about {share:.1%} of the budget, and may cost {most:.1%} in a trial")
        self.share = share


class Means(NamedTuple):
    """What a step may cost.

    Attributes:
        share: Of the budget.
        rate: Gradients, on a batch of the task's size, that can be had for all of the budget.
    """

    share: float
    rate: float

    @property
    def gradients(self) -> float:
        """How many gradients a step may cost."""
        return self.share * self.rate

    def require(self, gradients: float, more: float = 0.0) -> None:
        """Refuse a step that costs so many gradients and, besides, so large a share of the budget.

        Raises:
            TooDearError: If it does not fit.
        """
        share = gradients / self.rate + more
        if share > self.share:
            raise TooDearError(share, self.share)


@dataclass(frozen=True)
class Size:
    """How large a task is.

    Attributes:
        examples: How many there are.
        outputs: How many each has.
        parameters: P.
        alike: Whether weight decay is the same for all parameters.
        flops: Of matrix products in float64, that can be had for all of the budget; infinite where work is counted.
        processes: How many have so many examples each. A matrix is one of all.

    >>> small, large = Size(2000, 1, 1185, flops=1e12), Size(2000, 1, 5000, flops=1e12)
    >>> small.auto_work, small.matrix_share < large.matrix_share
    (20.0, True)
    """

    examples: int
    outputs: int
    parameters: int
    alike: bool = True
    flops: float = math.inf
    processes: int = 1

    @property
    def direct(self) -> bool:
        """Whether a step of `solver="auto"` is a direct solve."""
        return Auto().direct.accepts(self._rows, self._examples, self._matrix)

    @property
    def auto_work(self) -> float:
        """About how many gradients on all data a step of `solver="auto"` costs, matrices aside that take seconds."""
        if self.direct:
            counted = in_gradients(self._rows, self._examples, self._matrix) if math.isinf(self.flops) else 0.0
            return 20.0 + counted  # rows of the Jacobian, trial losses, and corrections
        if self.outputs == 1:
            return 35.0  # the sample's matrix, and three λ with some corrections each
        return Auto().other.most + 2.0  # the last search may take a few more

    @property
    def matrix_share(self) -> float:
        """The share of the budget that the matrix of a direct solve costs, and three factorisations of it."""
        size = self._matrix
        return (self._rows * self.parameters * size + size**3) / self.flops if self.direct else 0.0

    @property
    def _examples(self) -> int:
        return self.examples * self.processes

    @property
    def _rows(self) -> int:
        return self._examples * self.outputs

    @property
    def _matrix(self) -> int:
        return matrix_size(self._rows, self.parameters, alike=self.alike)


def size_of(task: Task, model: nn.Module, train: Split) -> Size:
    """Return how large a task is, by the outputs of an example, or by all of a closure's, each as an example's one."""
    trained = [p for p in model.parameters() if p.requires_grad]
    decays = {group["weight_decay"] for group in task.parameter_groups(model) if group["params"]}
    count = task.ranks(next(model.parameters()).device).count
    sized = partial(Size, parameters=_numel(trained), alike=len(decays) <= 1, processes=count)
    few = train.take(slice(0, min(2, len(train))))
    with undisturbed(model, next(model.parameters()).device):
        outputs = task.forward(model, few)[1]
        if outputs is None:  # of a closure that returns the loss alone
            with suppress(CurvatureError, ValueError):  # then the trial says so
                return sized(ggn(lambda: task.forward(model, few)[0], trained).outputs, 1)
    numbers = max(_numel(pytree.tree_leaves(outputs)), 1)
    if isinstance(task, ClosureTask):
        return sized(numbers, 1)
    return sized(len(train), max(1, numbers // len(few)))


def _numel(leaves: Iterable[object]) -> int:
    return sum(leaf.numel() for leaf in leaves if isinstance(leaf, torch.Tensor))


def flops(seconds: float, device: torch.device, size: int = 512) -> float:
    """Return how many floating-point operations of matrix products in float64 a device does in so many seconds."""
    A = torch.ones(size, size, dtype=torch.float64, device=device)
    return seconds * 2.0 * size**3 / shortest(lambda: A @ A, device, times=4)


def gradients(seconds: float, task: Task, model: nn.Module, train: Split) -> float:
    """Return how many gradients on a batch can be had in so many seconds; the network stays as it is."""
    batch = train.take(slice(0, task.batch_size))
    moved = [p for p in model.parameters() if p.requires_grad]
    device = next(model.parameters()).device
    with training_undisturbed(model, device):
        return seconds / shortest(
            lambda: torch.autograd.grad(task.forward(model, batch)[0], moved, allow_unused=True), device, times=3
        )


def shortest(work: Callable[[], object], device: torch.device, times: int) -> float:
    """Return the seconds of the fastest of some repetitions, > 0; of several the first warms up."""
    best = math.inf
    for _ in range(times):
        begin = time.perf_counter()
        work()
        if device.type != "cpu":  # which has only been told what to do
            torch.accelerator.synchronize(device)
        best = min(best, time.perf_counter() - begin)
    return max(best, 1e-9)
