"""The objective on one batch as a function of a vector, for methods that keep what they learn about it."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from latephase.parameters import Parameters
from latephase.random_state import rng_state, set_rng_state
from latephase.study.data import Data
from latephase.study.data.batches import chunks, endless
from latephase.study.problems import Problem


@dataclass
class FlatObjective:
    """The mean loss on one batch plus the L2 term, with its gradient. The batch is drawn once; so is dropout's mask.

    Attributes:
        problem: Has the loss.
        model: The network, whose parameters are those of the last call.
        data: What the batch is drawn from.
        batch: Examples in it.
        generator: What it is drawn with.
        evaluations: Calls so far.
        parameters: The network's, as a vector of length P.
    """

    problem: Problem
    model: nn.Module
    data: Data
    batch: int
    generator: torch.Generator
    evaluations: int = 0
    parameters: Parameters = field(init=False)

    def __post_init__(self) -> None:
        self.parameters = Parameters([{"params": list(self.model.parameters())}])
        self._decayed = self.problem.parameter_groups(self.model)[0]["params"]
        self._chunks = chunks(next(endless(self.data, self.batch, self.generator)))
        self._rng = rng_state(self.parameters.device)

    def __call__(self, theta: Tensor) -> tuple[float, Tensor]:
        """Return the objective at `theta`, [P], and its gradient, [P]."""
        self.evaluations += 1
        set_rng_state(self.parameters.device, self._rng)
        self.parameters.write(theta)
        self.model.zero_grad()
        total = 0.0
        for inputs, targets in self._chunks:
            loss = self.problem.loss(self.model(inputs), targets) * (len(targets) / self.batch)
            loss.backward()
            total += float(loss.detach())
        self.problem.add_l2_gradient(self._decayed)
        gradient = self.parameters.join([p.grad for p in self.parameters.tensors])
        return total + self.problem.l2_term(self.model), gradient

    def work_since(self, evaluations: int) -> float:
        """Return the work after so many evaluations, in gradients on a batch of SGD's size."""
        return (self.evaluations - evaluations) * self.batch / self.problem.batch_size


def whole_batch(problem: Problem, examples: int, batch: int | None) -> int:
    """Return the size of the batch: as asked for, or else that of the problem's gradient batch as far as there are."""
    return min(problem.gradient_batch, examples) if batch is None else batch
