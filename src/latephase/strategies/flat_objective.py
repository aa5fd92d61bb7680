"""The objective on one batch as a function of a vector, for methods that keep what they learn about it."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from latephase.parameters import Parameters
from latephase.random_state import rng_state, set_rng_state
from latephase.tasks.batches import chunks, endless
from latephase.tasks.split import Data
from latephase.tasks.task import Task, add_l2_gradient
from latephase.tasks.together import mean_gradient


@dataclass
class FlatObjective:
    """The mean loss on one batch plus the L2 term, with its gradient. The batch is drawn once; so is dropout's mask.

    Attributes:
        task: Has the loss.
        model: The network, whose parameters are those of the last call.
        data: What the batch is drawn from.
        batch: Examples in it.
        generator: What it is drawn with.
        evaluations: Calls so far.
        parameters: The network's, as a vector of length P.
    """

    task: Task
    model: nn.Module
    data: Data
    batch: int
    generator: torch.Generator
    evaluations: int = 0
    parameters: Parameters = field(init=False)

    def __post_init__(self) -> None:
        self.parameters = Parameters([{"params": list(self.model.parameters())}])
        self._groups = self.task.parameter_groups(self.model)
        self._draw()

    def _draw(self) -> None:
        self._drawn_from = self.generator.get_state()
        self._chunks = chunks(next(endless(self.data, self.batch, self.generator)))
        self._rng = rng_state(self.parameters.device)

    def __call__(self, theta: Tensor) -> tuple[float, Tensor]:
        """Return the objective at `theta`, [P], and its gradient, [P]."""
        self.evaluations += 1
        set_rng_state(self.parameters.device, self._rng)
        self.parameters.write(theta)
        trained = self.parameters.tensors
        loss = mean_gradient(self.task.ranks(self.parameters.device), trained, self._of_the_loss)
        add_l2_gradient(self._groups)
        gradient = self.parameters.join([p.grad for p in trained])
        return float(loss) + self.task.l2_term(self.model), gradient

    def _of_the_loss(self) -> Tensor:
        self.model.zero_grad()
        total = torch.zeros((), dtype=torch.float64)
        for chunk in self._chunks:
            loss = self.task.forward(self.model, chunk)[0] * (len(chunk) / self.batch)
            loss.backward()
            total += loss.detach().cpu()
        return total

    def state_dict(self) -> dict[str, Any]:
        """Return what the batch was drawn from, dropout's random numbers, and how many calls there were."""
        return {"drawn_from": self._drawn_from, "rng": self._rng, "evaluations": self.evaluations}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there. The generator is left where it would be after the batch has been drawn."""
        self.generator.set_state(state["drawn_from"])
        self._draw()
        self._rng, self.evaluations = state["rng"], state["evaluations"]

    def work_since(self, evaluations: int) -> float:
        """Return the work after so many evaluations, in gradients on a batch of SGD's size."""
        return (self.evaluations - evaluations) * self.batch / self.task.batch_size


def whole_batch(task: Task, examples: int, batch: int | None) -> int:
    """Return the size of the batch: as asked for, or else that of the task's gradient batch as far as there are."""
    return min(task.gradient_batch, examples) if batch is None else batch
