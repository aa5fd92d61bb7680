"""Stochastic weight averaging (Izmailov et al. 2018)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import AveragedModel

from latephase.checks import positive_integer
from latephase.random_state import rng_state, set_rng_state
from latephase.strategies.first_order import FirstOrder
from latephase.strategies.strategy import Declaration, Family, Settings, Snapshot, Step, Trainer
from latephase.strategies.style import Style
from latephase.strategies.trainer import copied_state
from latephase.tasks.split import Data
from latephase.tasks.task import Task


@dataclass(frozen=True)
class SWA:
    """Stochastic weight averaging: SGD goes on at a constant rate, what is judged is the mean of its iterates.

    Attributes:
        name: What tables and figures call it.
        every: Steps between two iterates that enter the mean.
        lr: The learning rate; None for the task's α.

    >>> SWA(every=5).settings()
    {'every': 5, 'lr': None}
    """

    name: str = "swa"
    every: int = 10
    lr: float | None = None
    family: ClassVar[Family] = Family.AVERAGING

    def __post_init__(self) -> None:
        positive_integer("every", self.every)

    def settings(self) -> Settings:
        """See `Strategy.settings`."""
        return {"every": self.every, "lr": self.lr}

    def start(self, task: Task, model: nn.Module, data: Data, generator: torch.Generator) -> Trainer:
        """See `Strategy.start`."""
        sgd = FirstOrder(self.name, lr=self.lr).start(task, model, data, generator)
        return _Averaging(sgd, model, AveragedModel(model), self.every, data.train.inputs, task.batch_size)


@dataclass
class _Averaging:
    sgd: Trainer
    model: nn.Module
    mean: AveragedModel
    every: int
    inputs: Tensor
    batch: int
    steps: int = 0

    def step(self, spent: float) -> Step:
        taken = self.sgd.step(spent)
        self.steps += 1
        if self.steps % self.every == 0:
            self.mean.update_parameters(self.model)
        return taken

    def judged(self) -> nn.Module:
        if self.steps < self.every:
            return self.model
        device = self.inputs.device
        rng = rng_state(device)  # dropout in the pass below is not to change the steps that follow
        _renew_statistics(self.mean, self.inputs.split(self.batch))
        set_rng_state(device, rng)
        return self.mean.module

    @property
    def _both(self) -> nn.Module:
        return nn.ModuleList([self.model, self.mean])

    def snapshot(self) -> Snapshot:
        return {"networks": copied_state(self._both), "steps": self.steps}

    def restore(self, snapshot: Snapshot) -> None:
        networks, steps = snapshot["networks"], snapshot["steps"]
        assert isinstance(networks, dict)
        assert isinstance(steps, int)
        self._both.load_state_dict(networks)
        self.steps = steps


@torch.no_grad()
def _renew_statistics(model: nn.Module, batches: Sequence[Tensor]) -> None:
    """Let batch normalisation forget its statistics and take the mean over the batches.

    Unlike PyTorch's `update_bn` it leaves alone what is in evaluation mode, which is how layers are frozen.
    """
    renewed = [layer for layer in model.modules() if isinstance(layer, _BatchNorm) and layer.training]
    if not renewed:
        return
    momenta = [layer.momentum for layer in renewed]
    for layer in renewed:
        layer.reset_running_stats()
        layer.momentum = None  # which makes it a cumulative mean
    for inputs in batches:
        model(inputs)
    for layer, momentum in zip(renewed, momenta, strict=True):
        layer.momentum = momentum


def _build(name: str, task: Task, examples: int, *, every: int = 10, lr: float | None = None) -> SWA:
    return SWA(name, every, lr)


_STYLE = Style("#857600", "#f0e442", (5.0, 1.0, 1.0, 1.0), "*")
DECLARATIONS = (Declaration("swa", Family.AVERAGING, _STYLE, _build, ("every", "lr")),)
