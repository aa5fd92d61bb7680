"""L-BFGS with a strong Wolfe line search."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from latephase.strategies.flat_objective import FlatObjective
from latephase.strategies.limited_memory import LimitedMemory
from latephase.strategies.strategy import Resumable, Step
from latephase.strategies.style import Style
from latephase.strategies.trainer import NetworkTrainer
from latephase.tasks.split import Data
from latephase.tasks.task import Task


class LBFGS(LimitedMemory):
    """PyTorch's L-BFGS, with a strong Wolfe line search; see `LimitedMemory`."""

    def start(self, task: Task, model: nn.Module, data: Data, generator: torch.Generator) -> Resumable:
        """See `Strategy.start`."""
        objective = FlatObjective(task, model, data, self.batch, generator)
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

        return NetworkTrainer(step, model, {"objective": objective, "optimizer": optimizer, "theta": _Iterate(theta)})


@dataclass
class _Iterate:
    """The vector that is optimized, as something to save: the network rounds it where it has another type."""

    theta: Tensor

    def state_dict(self) -> dict[str, Any]:
        return {"theta": self.theta.detach()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        with torch.no_grad():
            self.theta.copy_(state["theta"])


DECLARATIONS = (LBFGS.declared("lbfgs", Style("#2587bd", "#8fd3ff", (8.0, 2.0, 2.0, 2.0), "h")),)
