"""By what states of a network are compared: the mean loss on held-out data, or the objective."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import nn

from latephase.distributed import mean
from latephase.random_state import read_random_state, write_random_state
from latephase.strategies.trainer import copied_state
from latephase.tasks.closure_task import ClosureTask
from latephase.tasks.split import Split
from latephase.tasks.task import Task

CHUNK = 2000  # examples per forward pass
SHARE, FEWEST = 0.0025, 500
"""A look at the data may cost this share of a budget of seconds; else fewer are looked at, but not below so many."""


@dataclass(frozen=True)
class Judge:
    """Scores a network in evaluation mode, the lower the better. It changes nothing.

    Attributes:
        task: Has the loss.
        examples: To evaluate it on.
        device: Where the network is.
        name: What the score is, in words.
        with_l2: Whether the L2 term is part of it.
        closure: Evaluated instead, where it is not None.
    """

    task: Task
    examples: Split
    device: torch.device
    name: str
    with_l2: bool = False
    closure: Callable[[], object] | None = None

    def __call__(self, model: nn.Module) -> float:
        """Return the score; NaN where the loss is not finite."""
        with undisturbed(model, self.device):
            score = mean(self.task.ranks(self.device), "a score", lambda: self._here(model))  # each of as many examples
            return score + self.task.l2_term(model) if self.with_l2 else score

    def _here(self, model: nn.Module) -> float:
        return self._mean(model) if self.closure is None else _value(self.closure())

    def _mean(self, model: nn.Module) -> float:
        try:
            with torch.no_grad():
                return self._sum(model) / len(self.examples)
        except RuntimeError:  # a network that differentiates by its inputs needs a graph for that
            return self._sum(model) / len(self.examples)

    def _sum(self, model: nn.Module) -> float:
        total = 0.0
        for start in range(0, len(self.examples), CHUNK):
            chunk = self.examples.take(slice(start, start + CHUNK))
            total += float(self.task.forward(model, chunk)[0].detach()) * len(chunk)
        return total

    def affordable(self, seconds: float, model: nn.Module) -> int:
        """Return at how many examples it can look so that one look takes a small share of so many seconds."""
        count = len(self.examples)
        if self.closure is not None or isinstance(self.task, ClosureTask) or count <= FEWEST:
            return count
        few = self.on(FEWEST, 0)
        few(model)  # warms up
        begin = time.perf_counter()
        few(model)
        own = time.perf_counter() - begin
        took = mean(self.task.ranks(self.device), "the seconds of a look", lambda: own)
        return min(count, max(math.ceil(FEWEST * SHARE * seconds / max(took, 1e-9)), FEWEST))

    def on(self, fewer: int, seed: int) -> Judge:
        """Return a judge that looks at so many of the examples, drawn at random."""
        count = len(self.examples)
        if fewer >= count:
            return self
        chosen = torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:fewer]
        return replace(
            self, examples=self.examples.take(chosen), name=f"{self.name} on {fewer:,} of {count:,} examples"
        )


@contextmanager
def undisturbed(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Put the network into evaluation mode for a while; afterwards modes and random numbers are as they were."""
    modes = [(layer, layer.training) for layer in model.modules()]  # a frozen layer may be in evaluation mode for good
    random = read_random_state(device)
    model.eval()
    try:
        yield
    finally:
        for layer, training in modes:
            layer.training = training
        write_random_state(device, random)


@contextmanager
def training_undisturbed(model: nn.Module, device: torch.device) -> Iterator[None]:
    """The same in training mode; afterwards its state and gradients, too, are as they were."""
    state, grads = copied_state(model), [p.grad for p in model.parameters()]
    try:
        with undisturbed(model, device):
            model.train()
            yield
    finally:
        model.load_state_dict(state)
        for p, grad in zip(model.parameters(), grads, strict=True):
            p.grad = grad


def _value(result: object) -> float:
    loss = result[0] if isinstance(result, tuple) else result
    if not isinstance(loss, (float, int, torch.Tensor)):
        raise TypeError(f"a closure that judges must return a loss or (loss, outputs), not {type(loss).__name__}")
    return float(loss.detach() if isinstance(loss, torch.Tensor) else loss)
