"""The second phase: one strategy, from a checkpoint, for one budget."""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from latephase import StepRecord
from latephase.distributed import mean
from latephase.strategies.strategy import NothingLeftError, Strategy, WithinSeconds
from latephase.strategies.trainer import copied_state
from latephase.study.data import Data
from latephase.study.numbers import loss_text
from latephase.study.problems import Problem
from latephase.study.runs.budget import Allowance
from latephase.study.runs.clock import Clock
from latephase.study.runs.divergence import has_diverged
from latephase.study.runs.evaluation import Point, evaluate_once
from latephase.study.runs.progress import Update
from latephase.study.runs.share import own_share, stayed_together

EVALUATIONS = 20  # per run, equally spaced over the budget


@dataclass(frozen=True)
class Run:
    """What one strategy made of the budget.

    Attributes:
        curve: One point at the checkpoint, then up to `EVALUATIONS`; none is beyond the budget.
        records: One for each Hessian-free step that counts.
        network: State dict of the network at the end, the last point of the curve.
    """

    curve: tuple[Point, ...]
    records: tuple[StepRecord, ...]
    network: dict[str, torch.Tensor]


def resume(
    problem: Problem,
    data: Data,
    state: Mapping[str, torch.Tensor],
    strategy: Strategy,
    *,
    allowance: Allowance,
    seed: int,
    progress: Update,
) -> Run:
    """Continue training from a checkpoint within a budget. Seeds torch's global generator.

    Evaluation is not on the clock. The step during which the budget runs out does not count: it is taken back. A run
    whose train loss is seen to have diverged since the checkpoint ends there, and so does one with nothing left to do.
    Of several processes each trains on its share of the examples, and the first one evaluates: on all of them.

    Args:
        problem: What to train.
        data: On the device to train on.
        state: The checkpoint, a state dict of the problem's network.
        strategy: How to train.
        allowance: The budget.
        seed: For the batches that the strategy draws, and for dropout.
        progress: Told about each step.

    Returns:
        The run's curve, its steps' records, and the network that it ended with.
    """
    device = data.train.inputs.device
    ranks = problem.ranks(device)
    model = problem.build_model().to(device)
    model.load_state_dict(state)
    if allowance.unit == "seconds" and isinstance(strategy, WithinSeconds):
        strategy = strategy.within(allowance.amount)
    torch.manual_seed(seed)
    clock, work, lr = Clock(device), 0.0, math.nan
    records: list[StepRecord] = []

    def spent() -> float:
        """The share of the budget that is gone."""
        own = clock.seconds if allowance.unit == "seconds" else work
        return mean(ranks, "the clock", lambda: own) / allowance.amount

    def point(steps: int, seconds: float, gradients: float) -> Point:
        network = trainer.judged()
        return Point(steps, seconds, gradients, lr, **vars(evaluate_once(problem, network, data, ranks)))

    share_of_data = own_share(data, ranks)  # like loading them, on nobody's clock
    with clock:
        trainer = strategy.start(problem, model, share_of_data, torch.Generator().manual_seed(seed))
    curve = [point(steps=0, seconds=0.0, gradients=0.0)]
    for steps in itertools.count():
        share, now = spent(), (steps, clock.seconds, work)
        if share >= len(curve) / EVALUATIONS:
            curve.append(point(*now))
        progress(min(share, 1.0), f"train loss {loss_text(curve[-1].train_loss)}")
        if has_diverged(curve[-1].train_loss, curve[0].train_loss):
            break
        before = trainer.snapshot()
        try:
            with clock:
                step = trainer.step(share)
        except NothingLeftError:
            break
        work += step.gradients
        if spent() > 1.0:
            trainer.restore(before)
            break
        lr = step.lr
        records += [] if step.record is None else [step.record]

    if curve[-1].steps < steps:
        curve.append(point(*now))
    stayed_together(model, ranks)
    progress(1.0, f"train loss {loss_text(curve[-1].train_loss)}")
    return Run(tuple(curve), tuple(records), copied_state(trainer.judged()))
