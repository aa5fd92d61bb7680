"""The optimizer that has trained a network so far, going on with what it remembers."""

import copy
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from latephase.strategies.options import plain
from latephase.strategies.schedules import Schedule, constant
from latephase.strategies.strategy import Family, Resumable, Settings, Step
from latephase.strategies.trainer import NetworkTrainer
from latephase.tasks.batches import endless
from latephase.tasks.split import Data
from latephase.tasks.task import Task
from latephase.tasks.together import mean_gradient


@dataclass(frozen=True)
class Continued:
    """Steps of a copy of an optimizer, with its learning rates, moments and weight decay, under a schedule.

    The weight decay is the optimizer's own: the task's L2 term is not added to it.

    Attributes:
        name: What tables and figures call it.
        optimizer: Has trained the network so far. It is not changed.
        schedule: Scales its learning rates as they are now.

    >>> network = nn.Linear(1, 1)
    >>> Continued("decay", torch.optim.SGD(network.parameters(), lr=0.1)).settings()["schedule"]
    'constant'
    """

    name: str
    optimizer: torch.optim.Optimizer
    schedule: Schedule = constant
    family: ClassVar[Family] = Family.FIRST_ORDER

    def settings(self) -> Settings:
        """See `Strategy.settings`."""
        groups = [{k: v for k, v in group.items() if k != "params"} for group in self.optimizer.param_groups]
        return {"optimizer": plain(type(self.optimizer)), "schedule": self.schedule.__name__, "groups": plain(groups)}

    def start(self, task: Task, model: nn.Module, data: Data, generator: torch.Generator) -> Resumable:
        """See `Strategy.start`. The optimizer must be one of the network's parameters."""
        optimizer = twin(self.optimizer)
        rates = [group["lr"] for group in optimizer.param_groups]
        factor = self.schedule()
        stream = endless(data, task.batch_size, generator)
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        loss: Tensor | None = None

        def gradient() -> Tensor:
            optimizer.zero_grad()
            objective, _ = task.forward(model, next(stream))
            objective.backward()
            return objective.detach()

        def step(spent: float) -> Step:
            nonlocal loss
            scale = factor(spent, loss)
            for group, lr in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = lr * scale
            loss = mean_gradient(task.ranks(parameters[0].device), parameters, gradient)
            optimizer.step()
            return Step(1.0, float(rates[0]) * scale)

        return NetworkTrainer(step, model, {"optimizer": optimizer, "draws": stream})


def twin(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Return an optimizer of the same parameters with a copy of the other's memory and settings."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    return copy.deepcopy(optimizer, {id(p): p for p in parameters})
