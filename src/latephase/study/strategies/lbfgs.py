"""L-BFGS with a strong Wolfe line search."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from latephase.checks import positive_integer
from latephase.parameters import Parameters
from latephase.random_state import rng_state, set_rng_state
from latephase.study.data import Data
from latephase.study.data.batches import chunks, endless
from latephase.study.problems import Problem
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
        parameters = Parameters([{"params": list(model.parameters())}])
        # On one vector, because PyTorch's L-BFGS flattens gradients itself and cannot where they are channels last.
        theta = parameters.read()
        optimizer = torch.optim.LBFGS(
            [theta], max_iter=self.max_iter, history_size=self.history_size, line_search_fn="strong_wolfe"
        )
        decayed = problem.parameter_groups(model)[0]["params"]
        batch = chunks(next(endless(data, self.batch, generator)))
        rng = rng_state(parameters.device)
        evaluations = 0

        def closure() -> float:
            nonlocal evaluations
            evaluations += 1
            set_rng_state(parameters.device, rng)  # one dropout mask for all, as for the batch
            parameters.write(theta)
            model.zero_grad()
            total = 0.0
            for inputs, targets in batch:
                loss = problem.loss(model(inputs), targets) * (len(targets) / self.batch)
                loss.backward()
                total += float(loss.detach())
            problem.add_l2_gradient(decayed)
            theta.grad = parameters.join([p.grad for p in parameters.tensors])
            return total + problem.l2_term(model)

        def step(spent: float) -> Step:
            before = evaluations
            optimizer.step(closure)
            parameters.write(theta)
            return Step((evaluations - before) * self.batch / problem.batch_size)

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
    return LBFGS(name, min(problem.gradient_batch, examples) if batch is None else batch, max_iter, history_size)


_STYLE = Style("#2587bd", "#8fd3ff", (8.0, 2.0, 2.0, 2.0), "h")
DECLARATIONS = (Declaration("lbfgs", Family.QUASI_NEWTON, _STYLE, _build, ("batch", "max_iter", "history_size")),)
