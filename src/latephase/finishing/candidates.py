"""Which strategies compete for the rest of the budget, and how large their batches may be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from latephase.finishing.prices import Means, Size, TooDearError
from latephase.finishing.promise import Growth
from latephase.kfac import KFAC
from latephase.optimizer import HessianFree
from latephase.strategies.continued import Continued
from latephase.strategies.first_order import FirstOrder
from latephase.strategies.hf import HF
from latephase.strategies.lbfgs import LBFGS
from latephase.strategies.schedules import constant, cosine
from latephase.strategies.strategy import Strategy
from latephase.strategies.swa import SWA
from latephase.tasks.closure_task import ClosureTask
from latephase.tasks.task import Task

STRATEGIES = ("decay", "averaging", "l-bfgs", "hessian-free")

ADAM_LR = 1e-3  # PyTorch's, where nobody says what has trained the network
STATISTICS = 50  # batches with which batch normalisation's statistics are renewed
PAPER_STEP = 6.0  # gradients of its batch that a step with the sizes below costs about
SMALLEST = 512  # examples in a gradient below which second-order steps follow noise
DEAR = 0.3  # share of the budget that a step may cost where no noise stands in the way of what it gains
OFTEN = 0.04  # share that several iterations of L-BFGS in one step may cost


@dataclass(frozen=True)
class Candidate:
    """A strategy that may get the rest of the budget.

    Attributes:
        name: What reports call it.
        growth: How what it gains grows with what it spends.
        trials: Lengths of its trials, in shares of the budget.
        build: Given what a step may cost, returns the strategy; raises `TooDearError` where there is none.
        restarts: Whether it begins anew with the length that it gets, as a decay does, whose gain shows at its end.
        from_best: Whether it begins from the best state so far (averaged or decayed weights), not from the start.
        dearest: Share of the budget that a step may cost even in a short trial.
        longer: Length of a further trial, where the others leave it open whether it is better than what steps promise.
    """

    name: str
    growth: Growth
    trials: tuple[float, ...]
    build: Callable[[Means], Strategy]
    restarts: bool = False
    from_best: bool = False
    dearest: float = 0.0
    longer: float | None = None


def candidates(task: Task, size: Size, optimizer: torch.optim.Optimizer | None) -> list[Candidate]:
    """Return them in the order in which they are tried.

    Args:
        task: To train.
        size: What their steps' prices depend on.
        optimizer: Has trained the network so far.
    """
    examples = size.examples
    batch = 1 if isinstance(task, ClosureTask) else examples
    full = 1.0 if isinstance(task, ClosureTask) else examples / task.batch_size
    # A decay gains more the longer it is: two lengths show how much. The other trials are looked at in their middle.
    decay = Candidate("decay", Growth.LENGTH, (0.01, 0.02), lambda means: _decay(optimizer), restarts=True, longer=0.06)
    lbfgs = Candidate("l-bfgs", Growth.POWER, (0.02,), lambda means: _lbfgs(batch, full, means), from_best=True)
    hf = Candidate("hessian-free", Growth.POWER, (0.03,), lambda means: _hf(task, size, full, means), from_best=True)
    if full <= 1.0:  # no noise, which would have to be averaged: what uses curvature comes first, were it dear
        return [replace(lbfgs, dearest=DEAR), replace(hf, dearest=DEAR), replace(decay, longer=None)]
    every = max(1, min(10, round(full / 10)))
    swa = SWA("averaging", every=every, steps=_constant(optimizer), most_batches=STATISTICS)
    return [decay, Candidate("averaging", Growth.AVERAGE, (0.01,), lambda means: swa), lbfgs, hf]


def usable(optimizer: torch.optim.Optimizer | None) -> bool:
    """Say whether a decay can go on with it: not with what steps on closures."""
    return optimizer is not None and not isinstance(optimizer, (HessianFree, KFAC, torch.optim.LBFGS))


def _decay(optimizer: torch.optim.Optimizer | None) -> Strategy:
    if optimizer is None or not usable(optimizer):
        return FirstOrder("decay", torch.optim.Adam, ADAM_LR, cosine)
    return Continued("decay", optimizer, cosine)


def _constant(optimizer: torch.optim.Optimizer | None) -> Strategy:
    if optimizer is None or not usable(optimizer):
        return FirstOrder("averaging", torch.optim.Adam, ADAM_LR, constant)
    return Continued("averaging", optimizer, constant)


def _hf(task: Task, size: Size, full: float, means: Means) -> Strategy:
    examples = size.examples
    try:
        means.require(full * size.auto_work, size.matrix_share)
    except TooDearError:
        if full <= 1.0:  # the gradient has no noise that smaller batches would be a match for
            raise
    else:
        batch = 1 if isinstance(task, ClosureTask) else examples
        return HF("hessian-free", batch, batch, batch, same=True, options={"solver": "auto"})
    gradient = min(examples, int(means.gradients * task.batch_size / PAPER_STEP))
    if gradient < min(SMALLEST, examples):
        means.require(PAPER_STEP * min(SMALLEST, examples) / task.batch_size)
    return HF("hessian-free", max(1, gradient // 8), gradient, max(1, min(gradient // 4, examples - gradient // 8)))


def _lbfgs(batch: int, full: float, means: Means) -> Strategy:
    iterations = 4 if 5 * full <= min(means.share, OFTEN) * means.rate else 1
    means.require(full * (iterations + 1))
    return LBFGS("l-bfgs", batch, max_iter=iterations)
