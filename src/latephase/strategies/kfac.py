"""K-FAC with a learning rate that falls along half a cosine: curvature where gradients are noisy."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import nn

from latephase.kfac import KFAC
from latephase.strategies.first_order import GradientTrainer, stepping
from latephase.strategies.options import defaults, plain
from latephase.strategies.schedules import Schedule, cosine
from latephase.strategies.strategy import Declaration, Family, Settings
from latephase.strategies.style import Style
from latephase.tasks.batches import endless
from latephase.tasks.split import Data
from latephase.tasks.task import Task


@dataclass(frozen=True)
class Kronecker:
    """Steps of `KFAC` on mini-batches. The L2 term is the task's.

    Attributes:
        name: What tables and figures call it.
        schedule: Scales the learning rate.
        options: Arguments of `KFAC` that are not to have their defaults.

    Raises:
        TypeError: For an option that `KFAC` does not have, or whose type it refuses.
        ValueError: For one whose value it refuses.

    >>> Kronecker("mine", options={"lr": 0.003}).settings()["lr"]
    0.003
    """

    name: str
    schedule: Schedule = cosine
    options: Mapping[str, float] = field(default_factory=dict)
    family: ClassVar[Family] = Family.FIRST_ORDER

    def __post_init__(self) -> None:
        KFAC(nn.Linear(1, 1), **self.options)  # type: ignore[arg-type]

    def settings(self) -> Settings:
        """See `Strategy.settings`."""
        options = {name: plain(value) for name, value in {**OPTIONS, **self.options}.items()}
        return {"schedule": self.schedule.__name__, **options}

    def start(self, task: Task, model: nn.Module, data: Data, generator: torch.Generator) -> GradientTrainer:
        """See `Strategy.start`."""
        optimizer = KFAC(model, **self.options)  # type: ignore[arg-type]
        stream = endless(data, task.batch_size, generator)
        lr = optimizer.param_groups[0]["lr"]
        return stepping(optimizer, optimizer.step, lr, self.schedule, task, model, stream)


def _build(name: str, task: Task, examples: int, **options: float) -> Kronecker:
    return Kronecker(name, options=options)


OPTIONS = defaults(KFAC, without=("weight_decay",))
_STYLE = Style("#007a87", "#4fd0dc", (4.0, 1.0, 1.0, 1.0, 1.0, 1.0), "h")
DECLARATIONS = (Declaration("kfac_cosine", Family.FIRST_ORDER, _STYLE, _build, tuple(OPTIONS), default=False),)
