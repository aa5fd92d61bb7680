"""The second phase: one strategy, from the checkpoint, for one wall-clock budget."""

import itertools
from dataclasses import dataclass
from typing import Any

import torch

from latephase.study.clock import Clock
from latephase.study.data import Data
from latephase.study.evaluation import Point, evaluate
from latephase.study.problems import Problem
from latephase.study.progress import Update
from latephase.study.strategies import Strategy

EVALUATIONS = 20  # per run, equally spaced over the budget


@dataclass(frozen=True)
class Run:
    """What one strategy made of the budget.

    Attributes:
        strategy: The strategy's name.
        seed: What its batches were drawn with.
        curve: One point at the checkpoint, then up to `EVALUATIONS`; none is beyond the budget.
    """

    strategy: str
    seed: int
    curve: tuple[Point, ...]

    @property
    def best_train_loss(self) -> float:
        """The lowest training loss on the curve."""
        return min(point.train_loss for point in self.curve)

    @property
    def best_test_accuracy(self) -> float:
        """The highest test accuracy on the curve."""
        return max(point.test_accuracy for point in self.curve)


def resume(
    problem: Problem,
    data: Data,
    state: dict[str, Any],
    strategy: Strategy,
    *,
    budget: float,
    seed: int,
    progress: Update,
) -> Run:
    """Continue training from a checkpoint for ``budget`` seconds. Seeds torch's global generator.

    Evaluation is not on the clock. The step during which the budget runs out does not count: it is taken back.

    Args:
        problem: What to train.
        data: On the device to train on.
        state: The checkpoint, a state dict of the problem's network.
        strategy: How to train.
        budget: Seconds of training time, > 0.
        seed: For the batches that the strategy draws, and for dropout.
        progress: Told about each step.
    """
    device = data.train.inputs.device
    model = problem.build_model().to(device)
    model.load_state_dict(state)
    torch.manual_seed(seed)
    clock = Clock(device)

    curve = [evaluate(problem, model, data, seconds=0.0, steps=0)]
    with clock:
        step = strategy.start(problem, model, data.train, torch.Generator().manual_seed(seed))
    for steps in itertools.count():
        seconds = clock.seconds
        if seconds >= budget * len(curve) / EVALUATIONS:
            curve.append(evaluate(problem, model, data, seconds=seconds, steps=steps))
        progress(seconds / budget, f"train loss {curve[-1].train_loss:.4f}")
        before = {name: value.clone() for name, value in model.state_dict().items()}
        with clock:
            step(seconds / budget)
        if clock.seconds > budget:
            break

    if curve[-1].steps < steps:
        model.load_state_dict(before)
        curve.append(evaluate(problem, model, data, seconds=seconds, steps=steps))
    progress(1.0, f"train loss {curve[-1].train_loss:.4f}")
    return Run(strategy.name, seed, tuple(curve))
