"""L-BFGS with a strong Wolfe line search."""

import torch
from torch import nn

from latephase.study.data import Data
from latephase.study.problems import Problem
from latephase.study.strategies.flat_objective import FlatObjective
from latephase.study.strategies.limited_memory import LimitedMemory
from latephase.study.strategies.strategy import Step, Trainer
from latephase.study.strategies.style import Style
from latephase.study.strategies.trainer import NetworkTrainer


class LBFGS(LimitedMemory):
    """PyTorch's L-BFGS, with a strong Wolfe line search; see `LimitedMemory`."""

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


DECLARATIONS = (LBFGS.declared("lbfgs", Style("#2587bd", "#8fd3ff", (8.0, 2.0, 2.0, 2.0), "h")),)
