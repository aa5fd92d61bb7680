"""L-BFGS with a strong Wolfe line search."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from latephase.checks import positive_integer
from latephase.study.data import Data
from latephase.study.problems import Problem
from latephase.study.strategies.flat_objective import FlatObjective, whole_batch
from latephase.study.strategies.strategy import Declaration, Family, Settings, Step, Trainer
from latephase.study.strategies.style import Style
from latephase.study.strategies.trainer import NetworkTrainer


@dataclass(frozen=True)
class LBFGS:
    """L-BFGS with a strong Wolfe line search, on one batch that it keeps: its differences of gradients need that.

    Attributes:
        name: What tables and figures call it.
        batch: Examples in it.
        max_iter: Iterations of L-BFGS in what counts as a step here.
        history_size: Differences of gradients that it remembers. (100: PyTorch's.)
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

    def start(self, problem: Problem, model: nn.Module, data: Data, generator: torch.Generator) -> Trainer:
        """See `Strategy.start`."""
        objective = FlatObjective(problem, model, data, self.batch, generator)
        # On one vector, because PyTorch's L-BFGS flattens gradients itself and cannot where they are channels last.
        theta = objective.parameters.read()
        optimizer = torch.optim.LBFGS(
            [theta], max_iter=self.max_iter, history_size=self.history_size, line_search_fn="strong_wolfe"
        )

        def closure() -> float:
            loss, theta.grad = objective(theta)
            return loss

        def step(spent: float) -> Step:
            before = objective.evaluations
            optimizer.step(closure)
            objective.parameters.write(theta)
            return Step(objective.work_since(before))

        return NetworkTrainer(step, model)


def _build(
    name: str,
    problem: Problem,
    examples: int,
    *,
    batch: int | None = None,
    max_iter: int = 4,
    history_size: int = 100,
) -> LBFGS:
    return LBFGS(name, whole_batch(problem, examples, batch), max_iter, history_size)


_STYLE = Style("#2587bd", "#8fd3ff", (8.0, 2.0, 2.0, 2.0), "h")
DECLARATIONS = (Declaration("lbfgs", Family.QUASI_NEWTON, _STYLE, _build, ("batch", "max_iter", "history_size")),)
