"""The first phase: SGD with a constant learning rate if not another optimizer, and checkpoints on the way."""

import copy
import math
from collections.abc import Callable
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import nn

from latephase.random_state import rng_state, set_rng_state
from latephase.strategies.first_order import FirstOrder, GradientTrainer
from latephase.strategies.schedules import plateau
from latephase.strategies.trainer import copied_state
from latephase.study.data import Data
from latephase.study.numbers import loss_text
from latephase.study.problems import Problem
from latephase.study.problems.check import ProblemError, check_data
from latephase.study.runs.clock import Clock
from latephase.study.runs.divergence import DivergedError, has_diverged, highest_loss
from latephase.study.runs.evaluation import Point, Quality, evaluate_once
from latephase.study.runs.progress import Update
from latephase.study.runs.share import own_share, stayed_together
from latephase.study.strategies.catalogue import find_strategy

CHECKPOINTS = 10  # equally spaced (Tatzel et al. 2022, Section 3.1)
POINTS = 400  # most points of a curve between checkpoints: of a training with more epochs not all are evaluated


def checkpoint_epochs(epochs: int) -> list[int]:
    """Return after which epochs checkpoints are taken.

    >>> checkpoint_epochs(25)
    [2, 5, 8, 10, 12, 15, 18, 20, 22, 25]
    >>> checkpoint_epochs(3)
    [1, 2, 3]
    """
    return sorted({round(number * epochs / CHECKPOINTS) for number in range(1, CHECKPOINTS + 1)} - {0})


@dataclass(frozen=True)
class Checkpoint:
    """Where a training stands after an epoch: enough to resume it, and to go on to the bit as if never interrupted.

    Attributes:
        epoch: Epochs so far.
        network: The network's state dict.
        optimizer: The optimizer's state dict.
        generator: State of the generator that draws batches.
        rng: State of the random numbers that dropout takes, on the CPU and on the device.
        curve: Points so far: one before the first epoch, one after each checkpoint's, and up to `POINTS` others.
    """

    epoch: int
    network: dict[str, torch.Tensor]
    optimizer: dict[str, object]
    generator: torch.Tensor
    rng: list[torch.Tensor]
    curve: tuple[Point, ...]

    def save(self, file: Path | BinaryIO) -> None:
        """Write it, as tensors and numbers alone."""
        torch.save({**vars(self), "curve": [astuple(point) for point in self.curve]}, file)

    @classmethod
    def load(cls, file: Path | BinaryIO) -> "Checkpoint":
        """Read one, to the CPU. Only tensors and numbers are read; nothing in the file is executed."""
        content = torch.load(file, map_location="cpu", weights_only=True)
        return cls(**{**content, "curve": tuple(Point(*point) for point in content["curve"])})


def train(
    problem: Problem,
    data: Data,
    *,
    epochs: int,
    seed: int,
    progress: Update,
    keep: Callable[[int, Checkpoint], None],
    since: Checkpoint | None = None,
) -> tuple[Point, ...]:
    """Train a network on the device that holds `data`, and return the curve. Seeds torch's global generator.

    A first phase's schedule runs over the epochs. Of several processes each trains on its share of the examples, and
    the first one evaluates: on all of them.

    Args:
        problem: What to train.
        data: To train on.
        epochs: Passes over the training data.
        seed: For the network's first weights, the batches and dropout.
        progress: Told about each epoch.
        keep: Given each checkpoint's number, from 1, and the checkpoint.
        since: A checkpoint of the same training to go on from.

    Returns:
        The curve: a point before the first step, then one at even distances in epochs and at every checkpoint.

    Raises:
        ProblemError: Before the first step, if the data are too few, a loss is not finite, or the problem's first phase
            is no strategy of first order or waits for a plateau.
        DivergedError: As soon as the train loss is seen to have diverged. Checkpoints until then have been kept.
    """
    device = data.train.inputs.device
    ranks = problem.ranks(device)
    share = check_data(problem, own_share(data, ranks))
    torch.manual_seed(seed)
    model = problem.build_model().to(device)
    generator = torch.Generator().manual_seed(seed)
    trainer = _start(problem, model, share, generator)
    if since is not None:
        model.load_state_dict(since.network)
        trainer.optimizer.load_state_dict(copy.deepcopy(since.optimizer))  # PyTorch does not copy it
        generator.set_state(since.generator)
        set_rng_state(device, since.rng)
    steps = len(share.train) // problem.batch_size
    clock = Clock(device)
    first = 0 if since is None else since.epoch
    before = 0.0 if since is None else since.curve[-1].seconds
    curve = [] if since is None else list(since.curve)
    if since is None:
        curve.append(_first_point(problem, evaluate_once(problem, model, data, ranks), trainer))
    interval = -(-epochs // POINTS)
    numbers = {epoch: number for number, epoch in enumerate(checkpoint_epochs(epochs), start=1)}

    for epoch in range(first + 1, epochs + 1):
        with clock:
            for _ in range(steps):
                trainer.step((epoch - 1) / epochs)
        if epoch % interval == 0 or epoch in numbers:
            quality = evaluate_once(problem, model, data, ranks)
            curve.append(_point(quality, epoch * steps, before + clock.seconds, trainer))
            _check_progress(problem, epoch, curve[-1].train_loss, curve[0].train_loss)
        if epoch in numbers:
            optimizer = copy.deepcopy(trainer.optimizer.state_dict())
            reached = copied_state(model), optimizer, generator.get_state(), rng_state(device), tuple(curve)
            keep(numbers[epoch], Checkpoint(epoch, *reached))
        progress(epoch / epochs, f"train loss {loss_text(curve[-1].train_loss)}")
    stayed_together(model, ranks)
    return tuple(curve)


def _start(problem: Problem, model: nn.Module, data: Data, generator: torch.Generator) -> GradientTrainer:
    try:
        strategy = find_strategy(problem.first_phase, problem, len(data.train))
    except (ValueError, SyntaxError) as error:
        raise ProblemError(f"first_phase of {problem.name!r}: {error}") from error
    if not isinstance(strategy, FirstOrder) or strategy.schedule is plateau:  # whose memory no checkpoint has
        raise ProblemError(
            f"first_phase of {problem.name!r} must be a strategy of first order without a plateau, such as "
            f"sgd_constant or adam(lr=0.001), not {problem.first_phase!r}"
        )
    return strategy.start(problem, model, data, generator)


def _first_point(problem: Problem, quality: Quality, trainer: GradientTrainer) -> Point:
    for split, loss in (("train", quality.train_loss), ("test", quality.test_loss)):
        if not math.isfinite(loss):
            raise ProblemError(
                f"the {split} loss of {problem.name!r} must be finite before the first step, not {loss:g}; "
                "look for what is not finite in its data (load_data), its first weights (build_model) and its loss"
            )
    return _point(quality, 0, 0.0, trainer)


def _check_progress(problem: Problem, epoch: int, loss: float, start: float) -> None:
    if has_diverged(loss, start):
        by_sgd = problem.first_phase == "sgd_constant"
        rate = f"SGD's learning rate lr = {problem.lr:g}" if by_sgd else f"That of {problem.first_phase}"
        raise DivergedError(
            f"the training of {problem.name!r} has diverged: the train loss is {loss:g} after epoch {epoch}, {start:g} "
            f"at the start, and up to {highest_loss(start):g} counts as under way. {rate} may be too high for it; "
            "try a lower one"
        )


def _point(quality: Quality, steps: int, seconds: float, trainer: GradientTrainer) -> Point:
    return Point(steps, seconds, float(steps), trainer.optimizer.param_groups[0]["lr"], **vars(quality))
