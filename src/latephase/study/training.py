"""The first phase: SGD with a constant learning rate, up to the checkpoint."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from latephase.study.clock import Clock
from latephase.study.data import Data
from latephase.study.evaluation import Point, evaluate
from latephase.study.problems import Problem
from latephase.study.progress import Update
from latephase.study.strategies import SGD_CONSTANT


@dataclass(frozen=True)
class Training:
    """What the first phase leaves behind.

    Attributes:
        curve: One point before the first epoch and one after each.
        state: The network's state dict at the end.
    """

    curve: tuple[Point, ...]
    state: dict[str, Any]

    @property
    def seconds(self) -> float:
        """The training time, evaluation excluded."""
        return self.curve[-1].seconds

    def save(self, path: Path) -> None:
        """Write the checkpoint: the network's state dict, for `load_checkpoint`."""
        torch.save(self.state, path)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Return the state dict at ``path``, on the CPU. Only tensors are read; nothing in the file is executed."""
    return torch.load(path, map_location="cpu", weights_only=True)


def train(problem: Problem, data: Data, *, epochs: int, seed: int, progress: Update) -> Training:
    """Train a fresh network on the device that holds ``data``. Seeds torch's global generator."""
    device = data.train.inputs.device
    torch.manual_seed(seed)
    model = problem.build_model().to(device)
    step = SGD_CONSTANT.start(problem, model, data.train, torch.Generator().manual_seed(seed))
    steps_per_epoch = len(data.train) // problem.batch_size
    clock = Clock(device)

    curve = [evaluate(problem, model, data, seconds=0.0, steps=0)]
    for epoch in range(1, epochs + 1):
        with clock:
            for _ in range(steps_per_epoch):
                step(0.0)
        curve.append(evaluate(problem, model, data, seconds=clock.seconds, steps=epoch * steps_per_epoch))
        progress(epoch / epochs, f"train loss {curve[-1].train_loss:.4f}")
    return Training(tuple(curve), model.state_dict())
