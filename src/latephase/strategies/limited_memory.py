"""What strategies of L-BFGS have in common, whoever computes its iterations."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from latephase.checks import positive_integer
from latephase.strategies.flat_objective import whole_batch
from latephase.strategies.strategy import Declaration, Family, Settings, Trainer
from latephase.strategies.style import Style
from latephase.tasks.split import Data
from latephase.tasks.task import Task


@dataclass(frozen=True)
class LimitedMemory(ABC):
    """L-BFGS on one batch that it keeps: its differences of gradients need that.

    Attributes:
        name: What tables and figures call it.
        batch: Examples in it.
        max_iter: Iterations of L-BFGS in what counts as a step here.
        history_size: Differences of gradients that it remembers. (100: PyTorch's; SciPy's own default is 10.)
    """

    name: str
    batch: int
    max_iter: int = 4
    history_size: int = 100
    family: ClassVar[Family] = Family.QUASI_NEWTON

    def __post_init__(self) -> None:
        for name, value in self.settings().items():
            positive_integer(name, value)

    def settings(self) -> Settings:
        """See `Strategy.settings`."""
        return {"batch": self.batch, "max_iter": self.max_iter, "history_size": self.history_size}

    @abstractmethod
    def start(self, task: Task, model: nn.Module, data: Data, generator: torch.Generator) -> Trainer:
        """See `Strategy.start`."""

    @classmethod
    def declared(cls, name: str, style: Style, *, default: bool = True) -> Declaration:
        """Return the declaration of such a strategy."""

        def build(
            name: str,
            task: Task,
            examples: int,
            *,
            batch: int | None = None,
            max_iter: int = cls.max_iter,
            history_size: int = cls.history_size,
        ) -> "LimitedMemory":
            return cls(name, whole_batch(task, examples, batch), max_iter, history_size)

        return Declaration(name, cls.family, style, build, ("batch", "max_iter", "history_size"), default)
