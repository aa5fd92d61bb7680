"""`latephase.finish` as a strategy: it finds out by short trials what helps, and goes on with that."""

import copy
import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from latephase import checks
from latephase.finishing.candidates import STRATEGIES, candidates
from latephase.finishing.judge import Judge
from latephase.finishing.prices import flops, gradients, size_of
from latephase.finishing.race import Race
from latephase.strategies.first_order import FirstOrder
from latephase.strategies.strategy import Declaration, Family, NothingLeftError, Settings, Snapshot, Step
from latephase.strategies.style import Style
from latephase.strategies.trainer import copied_state
from latephase.study.problems import Problem
from latephase.tasks.split import Data
from latephase.tasks.task import Task

RESERVED = 0.005  # share of the budget that is kept for the last look at the network


@dataclass(frozen=True)
class Finish:
    """Strategies race for the budget, as in `latephase.finish`, judged by the objective on the training data.

    The decay and the averaging go on with the problem's first optimizer, without its memory, as a checkpoint hands on
    nothing but the network.

    Attributes:
        name: What tables and figures call it.
        strategies: Those that may compete, see `latephase.finish`.
        seconds: The budget, if it is one of seconds and known: then a step that does not fit is not tried.

    Raises:
        ValueError: If a strategy is unknown, or there is none.
    """

    name: str = "finish"
    strategies: tuple[str, ...] = STRATEGIES
    seconds: float | None = None
    family: ClassVar[Family] = Family.CHOOSING

    def __post_init__(self) -> None:
        for name in self.strategies:
            checks.choice("strategies", name, STRATEGIES)
        if not self.strategies:
            raise ValueError(f"strategies must name at least one of {', '.join(STRATEGIES)}")

    def settings(self) -> Settings:
        """See `Strategy.settings`."""
        return {"strategies": list(self.strategies)}

    def within(self, seconds: float) -> "Finish":
        """See `WithinSeconds`."""
        return replace(self, seconds=seconds)

    def start(self, task: Task, model: nn.Module, data: Data, generator: torch.Generator) -> "_Racing":
        """See `Strategy.start`."""
        device = next(model.parameters()).device
        size = size_of(task, model, data.train)
        judge = Judge(task, data.train, device, "objective", with_l2=True)
        rate = math.inf
        if self.seconds is not None:
            size = replace(size, flops=flops(self.seconds, device))
            rate = gradients(self.seconds, task, model, data.train)
            judge = judge.on(judge.affordable(self.seconds, model), seed=0)
        first = _first_optimizer(task, model, len(data.train))
        entrants = [c for c in candidates(task, size, first) if c.name in self.strategies]
        return _Racing(Race(task, model, data, generator, entrants, judge, rate), copy.deepcopy(model))


class _Racing:
    """A race whose best network so far is what is judged."""

    def __init__(self, race: Race, shown: nn.Module) -> None:
        self._race, self._shown = race, shown
        self._best = race.best_state
        self._taken: Step | None = None

    def step(self, spent: float) -> Step:
        share = spent + RESERVED
        if self._taken is not None:
            self._race.took(self._taken, share)
        self._taken = None
        while self._taken is None and not self._race.over:
            self._taken = self._race.step(share)
        self._best = self._race.best_state
        if self._taken is None:
            raise NothingLeftError("the race is over")
        return self._taken

    def judged(self) -> nn.Module:
        self._shown.load_state_dict(self._best)
        return self._shown

    def snapshot(self) -> Snapshot:
        return copied_state(self.judged())

    def restore(self, snapshot: Snapshot) -> None:
        self._best = {name: value for name, value in snapshot.items() if isinstance(value, Tensor)}


def _first_optimizer(task: Task, model: nn.Module, examples: int) -> torch.optim.Optimizer:
    """Return the optimizer that the training was by, without its memory."""
    from latephase.study.strategies.catalogue import find_strategy  # here, since the catalogue has this file, too

    assert isinstance(task, Problem)
    first = find_strategy(task.first_phase, task, examples)
    assert isinstance(first, FirstOrder)  # else there were no training
    lr = task.lr if first.lr is None else first.lr
    return first.optimizer(task.parameter_groups(model), lr=lr, **first.options)


def _build(name: str, task: Task, examples: int, *, strategies: tuple[str, ...] = STRATEGIES) -> Finish:
    return Finish(name, tuple(strategies))


_STYLE = Style("#00626b", "#4fd0dc", (), "*")
DECLARATIONS = (Declaration("finish", Family.CHOOSING, _STYLE, _build, ("strategies",), default=False),)
