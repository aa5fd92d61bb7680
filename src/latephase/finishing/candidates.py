"""Which strategies compete for the rest of the budget, and how large their batches may be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

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
    """A step costs more than its trial may. The message says how much."""


@dataclass(frozen=True)
class Size:
    """How large a task is.

    Attributes:
        examples: How many there are.
        outputs: How many each has.
        parameters: P.

    >>> Size(examples=2000, outputs=1, parameters=1185).auto_price < Size(2000, 10, 10**6).auto_price
    True
    """

    examples: int
    outputs: int
    parameters: int

    @property
    def auto_price(self) -> float:
        """About how many gradients on all data a step of `solver="auto"` costs."""
        auto, rows = Auto(), self.examples * self.outputs
        smaller = min(rows, self.parameters)
        if auto.direct.accepts(rows, self.examples, self.parameters):
            # The matrix and three factorisations, in gradients as `Direct.accepts` has it, and what depends on neither.
            return 30.0 + (rows * smaller + smaller**3 / self.parameters) / (30.0 * self.examples)
        products = auto.regression.products if self.outputs == 1 else auto.other.krylov.products
        return 1.3 * products + (0.0 if self.outputs == 1 else auto.other.most)


@dataclass(frozen=True)
class Candidate:
    """A strategy that may get the rest of the budget.

    Attributes:
        name: What reports call it.
        growth: How what it gains grows with what it spends.
        trials: Lengths of its trials, in shares of the budget.
        build: Given how many gradients (on a batch of the task's size) a step may cost, returns the strategy; raises
            `TooDearError` where there is none.
        restarts: Whether it begins anew with the length that it gets, as a decay does, whose gain shows at its end.
        from_best: Whether it begins from the best state so far (averaged or decayed weights), not from the start.
    """

    name: str
    growth: Growth
    trials: tuple[float, ...]
    build: Callable[[float], Strategy]
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
    found = [Candidate("decay", Growth.POWER, (0.01, 0.02), lambda most: _decay(optimizer), restarts=True)]
    if not isinstance(task, ClosureTask):  # which has no noise to average
        every = max(1, min(10, round(full / 10)))
        swa = SWA("averaging", every=every, steps=_constant(optimizer), most_batches=STATISTICS)
        found.append(Candidate("averaging", Growth.AVERAGE, (0.01,), lambda most: swa))
    # What steps on all data is tried last, when it is known what a gradient costs, and longer: its steps are few.
    return [
        *found,
        Candidate("l-bfgs", Growth.POWER, (0.02,), lambda most: _lbfgs(batch, full, most), from_best=True),
        Candidate("hessian-free", Growth.POWER, (0.03,), lambda most: _hf(task, size, full, most), from_best=True),
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


def _hf(task: Task, size: Size, full: float, most: float) -> Strategy:
    examples, auto = size.examples, full * size.auto_price
    if auto <= most:
        batch = 1 if isinstance(task, ClosureTask) else examples
        return HF("hessian-free", batch, batch, batch, same=True, options={"solver": "auto"})
    if isinstance(task, ClosureTask):
        raise TooDearError(_too_dear(auto, most))
    gradient = min(examples, int(most * task.batch_size / PAPER_STEP))
    if gradient < min(SMALLEST, examples):
        raise TooDearError(_too_dear(PAPER_STEP * min(SMALLEST, examples) / task.batch_size, most))
    return HF("hessian-free", max(1, gradient // 8), gradient, max(1, min(gradient // 4, examples - gradient // 8)))


def _lbfgs(batch: int, full: float, most: float) -> Strategy:
    for iterations in (4, 1):
        if full * (iterations + 1) <= most:
            return LBFGS("l-bfgs", batch, max_iter=iterations)
    raise TooDearError(_too_dear(2 * full, most))


def _too_dear(need: float, most: float) -> str:
    return f"a step costs about {need:,.0f} gradients, and a trial may take {most:,.0f}"
