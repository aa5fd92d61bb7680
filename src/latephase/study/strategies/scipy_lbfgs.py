"""SciPy's L-BFGS, a peer of PyTorch's: the routine of Zhu, Byrd, Lu and Nocedal 1997, with its own line search."""

from enum import IntEnum

import numpy as np
import torch
from torch import Tensor, nn

from latephase.strategies.flat_objective import FlatObjective
from latephase.strategies.limited_memory import LimitedMemory
from latephase.strategies.strategy import Step, Trainer
from latephase.strategies.style import Style
from latephase.strategies.trainer import NetworkTrainer
from latephase.study.data import Data
from latephase.tasks.task import Task

SEARCH = 20  # evaluations in a line search at most; SciPy's


class SciPyLBFGS(LimitedMemory):
    """SciPy's L-BFGS, in float64; see `LimitedMemory`."""

    def start(self, task: Task, model: nn.Module, data: Data, generator: torch.Generator) -> Trainer:
        """See `Strategy.start`."""
        objective = FlatObjective(task, model, data, self.batch, generator)
        routine = Routine(objective.parameters.read(), self.history_size)

        def step(spent: float) -> Step:
            before = objective.evaluations
            for _ in range(self.max_iter):
                routine.iterate(objective)
            objective.parameters.write(routine.theta)
            return Step(objective.work_since(before))

        return NetworkTrainer(step, model)


class Ask(IntEnum):
    """What the routine asks for or says, as it codes it."""

    START = 0
    NEW_ITERATE = 1
    EVALUATE = 3


class Routine:
    """L-BFGS that can stop after any iteration and go on with all that it remembers.

    `scipy.optimize.minimize` cannot: it calls the objective until it is done, and forgets all when it is called again.
    So this calls what `minimize` calls in a loop. It is not public; the tests hold it against `minimize`.

    Args:
        theta: Where to start, [P].
        history: Differences of gradients to remember.
    """

    def __init__(self, theta: Tensor, history: int) -> None:
        self._like, self._history = theta, history
        self._x = theta.cpu().numpy().astype(np.float64)
        self._task = np.zeros(2, np.int32)
        self._start()

    @property
    def theta(self) -> Tensor:
        """The last iterate, or the last trial point if an iteration is under way."""
        return torch.from_numpy(self._x.copy()).to(self._like)

    def iterate(self, objective: FlatObjective) -> None:
        """Go on to the next iterate. Where the routine has given up it starts anew, from where it is."""
        if self._task[0] not in (Ask.START, Ask.NEW_ITERATE):
            self._start()
        self._call()
        if self._task[0] != Ask.EVALUATE:  # it sees only now that the last iterate was the last
            self._start()
            self._call()
        while self._task[0] == Ask.EVALUATE:
            loss, gradient = objective(self.theta)
            self._f, self._g = np.array(loss), gradient.cpu().numpy().astype(np.float64)
            self._call()

    def _start(self) -> None:
        n, m = len(self._x), self._history
        self._f, self._g = np.array(0.0), np.zeros(n)
        self._free = np.zeros(n), np.zeros(n), np.zeros(n, np.int32)  # bounds, and that there are none
        self._work = np.zeros(2 * m * n + 5 * n + 11 * m * m + 8 * m), np.zeros(3 * n, np.int32)
        self._task[:] = Ask.START
        self._saved = np.zeros(4, np.int32), np.zeros(44, np.int32), np.zeros(29)
        self._search = np.zeros(2, np.int32)

    def _call(self) -> None:
        from scipy.optimize import _lbfgsb  # here, because it takes a while, which other strategies need not wait

        # No tolerance: the budget ends it.
        _lbfgsb.setulb(
            self._history, self._x, *self._free, self._f, self._g, 0.0, 0.0, *self._work, self._task, *self._saved,
            SEARCH, self._search,
        )  # fmt: skip


DECLARATIONS = (
    SciPyLBFGS.declared("scipy_lbfgs", Style("#4b6fb3", "#9bb8ee", (5.0, 1.5, 2.0, 1.5), "8"), default=False),
)
