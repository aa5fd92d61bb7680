"""Late-phase strategies: what to do with the rest of the budget from a checkpoint.

A strategy only takes steps; whoever calls them owns clock, evaluation and budget.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from latephase import HessianFree
from latephase.study import batches
from latephase.study.data import Split
from latephase.study.problems import Problem

Step = Callable[[float], None]
"""Trains the network by one step, given the fraction of the budget spent so far."""


class Strategy(Protocol):
    """A way to continue training from a checkpoint."""

    @property
    def name(self) -> str:
        """What tables and figures call it."""

    def start(self, problem: Problem, model: nn.Module, train: Split, generator: torch.Generator) -> Step:
        """Return the step that trains ``model`` on batches of ``train`` drawn with ``generator``."""


@dataclass(frozen=True)
class SGD:
    """SGD without momentum, at the problem's learning rate times ``factor(fraction of the budget spent)``."""

    name: str
    factor: Callable[[float], float]

    def start(self, problem: Problem, model: nn.Module, train: Split, generator: torch.Generator) -> Step:
        """See `Strategy.start`."""
        optimizer = torch.optim.SGD(problem.parameter_groups(model), lr=problem.lr)
        stream = batches.endless(train, problem.batch_size, generator)

        def step(spent: float) -> None:
            batch = next(stream)
            for group in optimizer.param_groups:
                group["lr"] = problem.lr * self.factor(spent)
            optimizer.zero_grad()
            problem.loss(model(batch.inputs), batch.targets).backward()
            optimizer.step()

        return step


def constant(spent: float) -> float:
    """Keep the learning rate: the baseline."""
    return 1.0


def tenth(spent: float) -> float:
    """Divide the learning rate by ten at the checkpoint."""
    return 0.1


def cosine(spent: float) -> float:
    """Let the learning rate fall to zero along half a cosine.

    >>> cosine(0.0), cosine(1.0)
    (1.0, 0.0)
    """
    return 0.5 * (1 + math.cos(math.pi * spent))


@dataclass(frozen=True)
class HF:
    """Hessian-free steps at their default settings, on batches drawn afresh for each.

    The curvature batch and the evaluation batch B̄ are disjoint. The gradient batch begins with the curvature batch
    and is disjoint from B̄ too, as far as the training data suffice.

    Attributes:
        name: What tables and figures call it.
        large_gradient: Whether the gradient is taken on the problem's ``gradient_batch`` rather than, as in the
            paper, on the examples that the curvature is taken on.
    """

    name: str
    large_gradient: bool

    def start(self, problem: Problem, model: nn.Module, train: Split, generator: torch.Generator) -> Step:
        """See `Strategy.start`."""
        optimizer = HessianFree(problem.parameter_groups(model))
        draw = batches.hessian_free(
            train,
            curvature=problem.curvature_batch,
            gradient=problem.gradient_batch if self.large_gradient else problem.curvature_batch,
            evaluation=problem.evaluation_batch,
            generator=generator,
        )

        def step(spent: float) -> None:
            curvature, rest, evaluation = (_chunks(batch) for batch in next(draw))
            optimizer.acc_step(
                model,
                problem.loss,
                loss_datalist=evaluation,
                grad_datalist=curvature + rest,
                mvp_datalist=curvature,
                micro_batches_in_memory=len(curvature),
            )

        return step


_CHUNK = 2048  # examples per forward pass: what a small machine's memory holds with the graph


def _chunks(batch: Split) -> list[tuple[Tensor, Tensor]]:
    pairs = zip(batch.inputs.split(_CHUNK), batch.targets.split(_CHUNK), strict=True)
    return [(inputs, targets) for inputs, targets in pairs if len(targets)]


SGD_CONSTANT = SGD("sgd_constant", constant)
SGD_TENTH = SGD("sgd_tenth", tenth)
SGD_COSINE = SGD("sgd_cosine", cosine)
HF_EQUAL = HF("hf_equal", large_gradient=False)
HF_LARGE = HF("hf_large", large_gradient=True)
