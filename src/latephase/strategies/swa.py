"""Stochastic weight averaging (Izmailov et al. 2018)."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from latephase.checks import positive_integer
from latephase.strategies.first_order import FirstOrder
from latephase.strategies.statistics import renew_statistics
from latephase.strategies.strategy import Declaration, Family, Resumable, Settings, Snapshot, Step, Strategy
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
        steps: What takes the steps instead of SGD at that rate.
        most_batches: How many batches the statistics of batch normalisation are renewed with; None for all there are.

    >>> SWA(every=5).settings()
    {'every': 5, 'lr': None}
    """

    name: str = "swa"
    every: int = 10
    lr: float | None = None
    steps: Strategy | None = None
    most_batches: int | None = None
    family: ClassVar[Family] = Family.AVERAGING

    def __post_init__(self) -> None:
        positive_integer("every", self.every)

    def settings(self) -> Settings:
        """See `Strategy.settings`."""
        others = {} if self.steps is None else {"steps": self.steps.settings(), "most_batches": self.most_batches}
        return {"every": self.every, "lr": self.lr, **others}

    def start(self, task: Task, model: nn.Module, data: Data, generator: torch.Generator) -> Resumable:
        """See `Strategy.start`."""
        steps: Strategy = FirstOrder(self.name, lr=self.lr) if self.steps is None else self.steps
        inner: Any = steps.start(task, model, data, generator)

        def batches() -> Iterator[Tensor]:
            starts = range(0, len(data.train), task.batch_size)
            for start in starts if self.most_batches is None else starts[: self.most_batches]:
                yield data.train.take(slice(start, start + task.batch_size)).inputs

        return _Averaging(inner, task, model, AveragedModel(model), self.every, batches)


@dataclass
class _Averaging:
    inner: Resumable
    task: Task
    model: nn.Module
    mean: AveragedModel
    every: int
    batches: Callable[[], Iterator[Tensor]]
    steps: int = 0

    def step(self, spent: float) -> Step:
        taken = self.inner.step(spent)
        self.steps += 1
        if self.steps % self.every == 0:
            self.mean.update_parameters(self.model)
        return taken

    def judged(self) -> nn.Module:
        if self.steps < self.every:
            return self.model
        device = next(self.model.parameters()).device
        renew_statistics(self.mean, self.batches(), device, self.task.ranks(device))
        return self.mean.module

    @property
    def _both(self) -> nn.Module:
        return nn.ModuleList([self.model, self.mean])

    def snapshot(self) -> dict[str, Any]:
        return {"networks": copied_state(self._both), "steps": self.steps}

    def restore(self, snapshot: Snapshot) -> None:
        networks, steps = snapshot["networks"], snapshot["steps"]
        assert isinstance(networks, dict)
        assert isinstance(steps, int)
        self._both.load_state_dict(networks)
        self.steps = steps

    def state_dict(self) -> dict[str, Any]:
        return {"inner": self.inner.state_dict(), **self.snapshot()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.inner.load_state_dict(state["inner"])
        self.restore(state)


def _build(name: str, task: Task, examples: int, *, every: int = 10, lr: float | None = None) -> SWA:
    return SWA(name, every, lr)


_STYLE = Style("#857600", "#f0e442", (5.0, 1.0, 1.0, 1.0), "*")
DECLARATIONS = (Declaration("swa", Family.AVERAGING, _STYLE, _build, ("every", "lr")),)
