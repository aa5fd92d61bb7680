"""Self-scaled Broyden: a dense quasi-Newton method whose update is scaled, and chosen from Broyden's family, by itself.

Urbán, Stefanou and Pons 2024 (arXiv 2405.04230) found it best on physics-informed networks.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from latephase.checks import positive_integer
from latephase.strategies.flat_objective import FlatObjective, whole_batch
from latephase.strategies.strategy import Declaration, Family, Settings, Step, Trainer
from latephase.strategies.style import Style
from latephase.strategies.trainer import NetworkTrainer
from latephase.study.data import Data
from latephase.study.strategies.broyden import Minimiser
from latephase.tasks.task import Task

MOST = 12_000
"""Parameters at most: the matrix then takes 1.2 GB."""


@dataclass(frozen=True)
class SSBroyden:
    """Self-scaled Broyden steps on one batch that it keeps, in float64.

    Attributes:
        name: What tables and figures call it.
        batch: Examples in it.
    """

    name: str
    batch: int
    family: ClassVar[Family] = Family.QUASI_NEWTON

    def __post_init__(self) -> None:
        positive_integer("batch", self.batch)

    def settings(self) -> Settings:
        """See `Strategy.settings`."""
        return {"batch": self.batch}

    def start(self, task: Task, model: nn.Module, data: Data, generator: torch.Generator) -> Trainer:
        """See `Strategy.start`.

        Returns:
            What takes the steps.

        Raises:
            ValueError: If there are more than `MOST` parameters to train.
        """
        objective = FlatObjective(task, model, data, self.batch, generator)
        if objective.parameters.numel > MOST:
            raise ValueError(
                f"strategy {self.name!r} keeps a dense matrix and so takes at most {MOST:,} parameters, "
                f"not {objective.parameters.numel:,}; lbfgs takes any number"
            )
        minimiser = Minimiser(objective, objective.parameters.read().double())

        def step(spent: float) -> Step:
            before = objective.evaluations
            minimiser.step()
            objective.parameters.write(minimiser.theta)
            return Step(objective.work_since(before))

        return NetworkTrainer(step, model)


def _build(name: str, task: Task, examples: int, *, batch: int | None = None) -> SSBroyden:
    return SSBroyden(name, whole_batch(task, examples, batch))


_STYLE = Style("#7a5195", "#c79be0", (1.5, 1.2), "D")
DECLARATIONS = (Declaration("ssbroyden", Family.QUASI_NEWTON, _STYLE, _build, ("batch",), default=False),)
