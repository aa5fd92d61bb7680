"""Optimizers of `torch.optim`'s kind, one gradient per step; SGD with the paper's four schedules among them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar, TypeAlias

import torch
from torch import Tensor, nn

from latephase.strategies.options import defaults, plain
from latephase.strategies.schedules import Schedule, constant, cosine, plateau, tenth
from latephase.strategies.strategy import Declaration, Family, Settings, Step, Strategy
from latephase.strategies.style import Style
from latephase.strategies.trainer import NetworkTrainer
from latephase.tasks.batches import endless
from latephase.tasks.split import Data
from latephase.tasks.task import Task, add_l2_gradient
from latephase.tasks.together import mean_gradient

Closure: TypeAlias = Callable[[], Tensor]
"""Sets the gradients of the objective on a batch, and returns its loss without a graph."""


@dataclass(frozen=True)
class FirstOrder:
    """An optimizer of `torch.optim`'s kind, one gradient per step.

    The objective contains the task's L2 term whatever the optimizer, so all minimise the same. Weight decay of
    another kind (AdamW's) comes on top where `options` ask for it.

    Attributes:
        name: What tables and figures call it.
        optimizer: Makes the optimizer from parameters and options.
        lr: The learning rate before the schedule; None for the task's α.
        schedule: Scales the learning rate.
        options: Further arguments of the optimizer.

    Raises:
        ValueError: If the optimizer does not take these options.
    """

    name: str
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.SGD
    lr: float | None = None
    schedule: Schedule = constant
    options: Mapping[str, object] = field(default_factory=dict)
    family: ClassVar[Family] = Family.FIRST_ORDER

    def __post_init__(self) -> None:
        lr = {} if self.lr is None else {"lr": self.lr}
        try:
            self.optimizer([{"params": [nn.Parameter(torch.zeros(2, 2))]}], **lr, **self.options)
        except Exception as error:  # whatever an optimizer raises
            raise ValueError(f"strategy {self.name!r}: {error}") from error

    def settings(self) -> Settings:
        """See `Strategy.settings`."""
        own = {"optimizer": self.optimizer, "lr": self.lr, "schedule": self.schedule.__name__, **self.options}
        return {name: plain(value) for name, value in own.items()}

    def start(self, task: Task, model: nn.Module, data: Data, generator: torch.Generator) -> "GradientTrainer":
        """See `Strategy.start`."""
        lr = task.lr if self.lr is None else self.lr
        groups = [{"params": group["params"]} for group in task.parameter_groups(model)]
        optimizer = self.optimizer(groups, lr=lr, **self.options)

        def advance(gradient: Closure) -> Tensor:
            loss = gradient()
            optimizer.step()
            return loss

        stream = endless(data, task.batch_size, generator)
        return stepping(optimizer, advance, lr, self.schedule, task, model, stream)


@dataclass
class GradientTrainer(NetworkTrainer):
    """A trainer whose memory is that of its optimizer.

    Attributes:
        optimizer: Takes the steps.
    """

    optimizer: torch.optim.Optimizer = field(kw_only=True)


def stepping(
    optimizer: torch.optim.Optimizer,
    advance: Callable[[Closure], Tensor],
    lr: float,
    schedule: Schedule,
    task: Task,
    model: nn.Module,
    stream: endless,
) -> GradientTrainer:
    """Return what steps on one batch after the other.

    Args:
        optimizer: Takes the steps.
        advance: Takes a step of it, given what sets the gradients of the objective and returns its loss; returns that.
        lr: The learning rate before the schedule, of all groups.
        schedule: Scales it.
        task: Has the objective.
        model: What is trained.
        stream: The batches.
    """
    factor, groups = schedule(), task.parameter_groups(model)
    parameters = [p for group in groups for p in group["params"]]
    loss: Tensor | None = None

    def step(spent: float) -> Step:
        nonlocal loss
        batch = next(stream)
        now = lr * factor(spent, loss)
        for group in optimizer.param_groups:
            group["lr"] = now

        def of_the_loss() -> Tensor:
            optimizer.zero_grad()
            objective, _ = task.forward(model, batch)
            objective.backward()
            return objective.detach()

        def gradient() -> Tensor:
            found = mean_gradient(task.ranks(parameters[0].device), parameters, of_the_loss)
            add_l2_gradient(groups)
            return found  # a tensor: to read its value waits for the device, and few schedules need it

        loss = advance(gradient)
        return Step(1.0, now)

    return GradientTrainer(step, model, {"optimizer": optimizer, "draws": stream}, optimizer=optimizer)


SGD_CONSTANT = FirstOrder("sgd_constant")
SGD_TENTH = FirstOrder("sgd_tenth", schedule=tenth)
SGD_COSINE = FirstOrder("sgd_cosine", schedule=cosine)
SGD_PLATEAU = FirstOrder("sgd_plateau", schedule=plateau)


def _declared(sgd: FirstOrder, style: Style) -> Declaration:
    def build(name: str, task: Task, examples: int, *, lr: float | None = None, **options: object) -> Strategy:
        return sgd if name == sgd.name else replace(sgd, name=name, lr=lr, options=options)

    return Declaration(sgd.name, Family.FIRST_ORDER, style, build, tuple(defaults(torch.optim.SGD)))


DECLARATIONS = (
    _declared(SGD_CONSTANT, Style("#6b6b6b", "#b4b4b4", (), "o")),
    _declared(SGD_TENTH, Style("#00946c", "#1fbf92", (5.0, 1.6), "s")),
    _declared(SGD_COSINE, Style("#0072b2", "#56b4e9", (6.0, 1.5, 1.0, 1.5), "D")),
    _declared(SGD_PLATEAU, Style("#b85f92", "#e29bc4", (3.0, 1.0, 1.0, 1.0, 1.0, 1.0), "v")),
)
