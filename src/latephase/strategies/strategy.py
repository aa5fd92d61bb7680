"""What a late-phase strategy is: something to do with the rest of the budget from a checkpoint.

A strategy only takes steps; whoever calls them owns clock, evaluation and budget.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

import torch
from torch import nn

from latephase.records import StepRecord
from latephase.strategies.style import Style
from latephase.tasks.split import Data
from latephase.tasks.task import Task

Settings: TypeAlias = dict[str, object]
"""Names and values, such as JSON has them: numbers, strings, None, lists and dictionaries of them."""

Snapshot: TypeAlias = Mapping[str, object]
"""What a trainer can be put back to."""


class Family(str, Enum):
    """The kinds of strategies, in the order of tables and legends.

    >>> Family("Hessian-free").name
    'HESSIAN_FREE'
    """

    FIRST_ORDER = "first order"
    HESSIAN_FREE = "Hessian-free"
    QUASI_NEWTON = "quasi-Newton"
    AVERAGING = "averaging"
    CHOOSING = "choosing"


class TooFewExamplesError(ValueError):
    """There are not examples enough for a strategy's batches. The message says how many it needs."""


class NothingLeftError(Exception):
    """A trainer's step has nothing left to do: the run ends before its budget does."""


class Step(NamedTuple):
    """What one step was.

    Attributes:
        gradients: Its work, in gradients on a batch of SGD's size.
        lr: The learning rate; NaN where there is none.
        record: Of a Hessian-free step.
    """

    gradients: float
    lr: float = math.nan
    record: StepRecord | None = None


class Trainer(Protocol):
    """A strategy at work on one network.

    >>> from latephase.strategies.trainer import NetworkTrainer
    >>> trainer: Trainer = NetworkTrainer(lambda spent: Step(gradients=1.0), nn.Linear(2, 1))
    >>> trainer.step(spent=0.5).gradients
    1.0
    """

    def step(self, spent: float) -> Step:
        """Take one step, given the fraction of the budget spent so far.

        Raises:
            NothingLeftError: If there is nothing left to do.
        """

    def judged(self) -> nn.Module:
        """Return the network to evaluate."""

    def snapshot(self) -> Snapshot:
        """Return a copy of what `judged` depends on, so that a step can be taken back. It disturbs no later step."""

    def restore(self, snapshot: Snapshot) -> None:
        """Put that back, to the bit.

        It is for the last step of a run, the one during which the budget runs out: what only later steps depend on (an
        optimizer's memory, the batches drawn) may stay where it is.
        """


class Resumable(Trainer, Protocol):
    """A trainer that can be saved at any step, and goes on to the bit as if never interrupted.

    That is: one that `start` made in the same way, whose random number generators have been put back by the caller.
    """

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of all that later steps depend on, in tensors and what JSON holds."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""


@runtime_checkable
class Strategy(Protocol):
    """A way to continue training from a checkpoint.

    >>> from latephase.strategies.swa import SWA
    >>> isinstance(SWA(), Strategy)
    True
    """

    @property
    def name(self) -> str:
        """What tables and figures call it."""

    @property
    def family(self) -> Family:
        """What kind it is of."""

    def settings(self) -> Settings:
        """Return what its steps depend on besides name, problem and seed: part of a run's identity."""

    def start(self, task: Task, model: nn.Module, data: Data, generator: torch.Generator) -> Trainer:
        """Return what trains `model` on batches drawn with `generator`."""


@runtime_checkable
class WithinSeconds(Protocol):
    """A strategy that wants to know beforehand how many seconds it has."""

    def within(self, seconds: float) -> Strategy:
        """Return the strategy for a budget of so many seconds."""


@dataclass(frozen=True)
class Declaration:
    """A strategy of the package, before it is fitted to a problem.

    Attributes:
        name: What the command line calls it.
        family: What kind it is of.
        style: What it is drawn with; None for one of those that remain.
        build: Called as `build(name, task, examples, **options)`, with the name that tables are to show and the
            number of training examples, it returns the strategy. It raises `TooFewExamplesError` where that is so.
        options: The names of the options that it takes.
        default: Whether a study takes it if not told otherwise.
        numbered: Whether a number follows the name, any number.
    """

    name: str
    family: Family
    style: Style | None
    build: Callable[..., Strategy]
    options: tuple[str, ...]
    default: bool = True
    numbered: bool = False
