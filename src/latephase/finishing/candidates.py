"""Which strategies compete for the rest of the budget, and how large their batches may be."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch

from latephase.finishing.promise import Growth
from latephase.optimizer import HessianFree
from latephase.parts.auto import Auto
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
        flops: Of matrix products in float64, that can be had for all of the budget; infinite where work is counted.

    >>> small, large = Size(2000, 1, 1185, flops=1e12), Size(2000, 1, 5000, flops=1e12)
    >>> small.auto_work, small.matrix_share < large.matrix_share
    (30.0, True)
    """

    examples: int
    outputs: int
    parameters: int
    flops: float = math.inf

    @property
    def direct(self) -> bool:
        """Whether a step of `solver="auto"` is a direct solve."""
        return Auto().direct.accepts(self.examples * self.outputs, self.examples, self.parameters)

    @property
    def auto_work(self) -> float:
        """About how many gradients on all data a step of `solver="auto"` costs, matrices aside."""
        if self.direct:
            return 30.0  # rows of the Jacobian, trial losses, and corrections
        auto = Auto()
        products = auto.regression.products if self.outputs == 1 else auto.other.krylov.products
        return 1.3 * products + (0.0 if self.outputs == 1 else auto.other.most)

    @property
    def matrix_share(self) -> float:
        """The share of the budget that the matrix of a direct solve costs, and three factorisations of it."""
        rows = self.examples * self.outputs
        smaller = min(rows, self.parameters)
        return (rows * self.parameters * smaller + smaller**3) / self.flops if self.direct else 0.0


def flops(seconds: float, size: int = 512) -> float:
    """Return how many floating-point operations of matrix products in float64 can be had in so many seconds."""
    A = torch.ones(size, size, dtype=torch.float64)
    best = math.inf
    for _ in range(4):  # the first of them warms up
        begin = time.perf_counter()
        A @ A
        best = min(best, time.perf_counter() - begin)
    return seconds * 2.0 * size**3 / max(best, 1e-9)


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
    """

    name: str
    growth: Growth
    trials: tuple[float, ...]
    build: Callable[[Means], Strategy]
    restarts: bool = False
    from_best: bool = False


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
    found = [Candidate("decay", Growth.POWER, (0.01, 0.02), lambda means: _decay(optimizer), restarts=True)]
    if not isinstance(task, ClosureTask):  # which has no noise to average
        every = max(1, min(10, round(full / 10)))
        swa = SWA("averaging", every=every, steps=_constant(optimizer), most_batches=STATISTICS)
        found.append(Candidate("averaging", Growth.AVERAGE, (0.01,), lambda means: swa))
    # What steps on all data is tried last, when it is known what a gradient costs, and longer: its steps are few.
    return [
        *found,
        Candidate("l-bfgs", Growth.POWER, (0.02,), lambda means: _lbfgs(batch, full, means), from_best=True),
        Candidate("hessian-free", Growth.POWER, (0.03,), lambda means: _hf(task, size, full, means), from_best=True),
    ]


def usable(optimizer: torch.optim.Optimizer | None) -> bool:
    """Say whether a decay can go on with it: not with what steps on closures."""
    return optimizer is not None and not isinstance(optimizer, (HessianFree, torch.optim.LBFGS))


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
    iterations = 4 if 5 * full <= means.gradients else 1
    means.require(full * (iterations + 1))
    return LBFGS("l-bfgs", batch, max_iter=iterations)
