"""Late-phase strategies: what to do with the rest of the budget from a checkpoint.

A strategy only takes steps; whoever calls them owns clock, evaluation and budget.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import AveragedModel

from latephase import HessianFree, StepRecord
from latephase.parameters import Parameters
from latephase.random_state import rng_state, set_rng_state
from latephase.study import batches
from latephase.study.data import Data, Split
from latephase.study.problems import Problem
from latephase.study.schedules import Schedule, constant, cosine, plateau, tenth


class Step(NamedTuple):
    """What one step was.

    Attributes:
        gradients: Its work, in gradients on a batch of SGD's size.
        lr: The learning rate; NaN where there is none.
        record: Of a Hessian-free step.
    """

    gradients: float
    lr: float = math.nan
    record: StepRecord | None = None


class Trainer(Protocol):
    """A strategy at work on one network."""

    def step(self, spent: float) -> Step:
        """Take one step, given the fraction of the budget spent so far."""

    @property
    def network(self) -> nn.Module:
        """What steps change: to put its state back is to take a step back."""

    def judged(self) -> nn.Module:
        """Return the network to evaluate."""


class Strategy(Protocol):
    """A way to continue training from a checkpoint."""

    @property
    def name(self) -> str:
        """What tables and figures call it."""

    def settings(self) -> dict[str, Any]:
        """What its steps depend on besides problem and seed, in plain numbers and strings."""

    def start(self, problem: Problem, model: nn.Module, data: Data, generator: torch.Generator) -> Trainer:
        """Return what trains ``model`` on batches drawn with ``generator``."""


@dataclass
class _Trainer:
    step: Callable[[float], Step]
    network: nn.Module

    def judged(self) -> nn.Module:
        return self.network


# ---------------------------------------------------------------------- first order


@dataclass(frozen=True)
class FirstOrder:
    """An optimizer of `torch.optim`'s kind, one gradient per step.

    The objective contains the problem's L2 term whatever the optimizer, so all minimise the same. Weight decay of
    another kind (AdamW's) comes on top where ``options`` ask for it.

    Attributes:
        name: What tables and figures call it.
        optimizer: Makes the optimizer from parameters and options.
        lr: The learning rate before the schedule; None for the problem's α.
        schedule: Scales the learning rate.
        options: Further arguments of the optimizer.
    """

    name: str
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.SGD
    lr: float | None = None
    schedule: Schedule = constant
    options: dict[str, Any] = field(default_factory=dict)

    def settings(self) -> dict[str, Any]:
        """See `Strategy.settings`."""
        kind = f"{self.optimizer.__module__}.{self.optimizer.__qualname__}"
        schedule = self.schedule.__name__
        return {"name": self.name, "optimizer": kind, "lr": self.lr, "schedule": schedule, **self.options}

    def start(self, problem: Problem, model: nn.Module, data: Data, generator: torch.Generator) -> Trainer:
        """See `Strategy.start`."""
        lr = problem.lr if self.lr is None else self.lr
        decayed, plain = (group["params"] for group in problem.parameter_groups(model))
        optimizer = self.optimizer([{"params": decayed}, {"params": plain}], lr=lr, **self.options)
        factor = self.schedule()
        stream = batches.endless(data, problem.batch_size, generator)
        loss: Tensor | None = None

        def step(spent: float) -> Step:
            nonlocal loss
            batch = next(stream)
            now = lr * factor(spent, loss)
            for group in optimizer.param_groups:
                group["lr"] = now
            optimizer.zero_grad()
            objective = problem.loss(model(batch.inputs), batch.targets)
            objective.backward()
            _add_l2_gradient(problem, decayed)
            optimizer.step()
            loss = objective.detach()  # a tensor: to read its value waits for the device, and few schedules need it
            return Step(1.0, now)

        return _Trainer(step, model)


@dataclass(frozen=True)
class SWA:
    """Stochastic weight averaging (Izmailov et al. 2018): SGD goes on at α, what is judged is the mean of its iterates.

    Attributes:
        name: What tables and figures call it.
        every: Steps between two iterates that enter the mean.
    """

    name: str = "swa"
    every: int = 10

    def settings(self) -> dict[str, Any]:
        """See `Strategy.settings`."""
        return {"name": self.name, "every": self.every}

    def start(self, problem: Problem, model: nn.Module, data: Data, generator: torch.Generator) -> Trainer:
        """See `Strategy.start`."""
        sgd = SGD_CONSTANT.start(problem, model, data, generator)
        return _Averaging(sgd, model, AveragedModel(model), self.every, data.train.inputs, problem.batch_size)


@dataclass
class _Averaging:
    sgd: Trainer
    model: nn.Module
    mean: AveragedModel
    every: int
    inputs: Tensor
    batch: int
    steps: int = 0

    def step(self, spent: float) -> Step:
        taken = self.sgd.step(spent)
        self.steps += 1
        if self.steps % self.every == 0:
            self.mean.update_parameters(self.model)
        return taken

    @property
    def network(self) -> nn.Module:
        return nn.ModuleList([self.model, self.mean])

    def judged(self) -> nn.Module:
        if self.steps < self.every:
            return self.model
        device = self.inputs.device
        rng = rng_state(device)  # dropout in the pass below is not to change the steps that follow
        _renew_statistics(self.mean, self.inputs.split(self.batch))
        set_rng_state(device, rng)
        return self.mean.module


@torch.no_grad()
def _renew_statistics(model: nn.Module, batches: Sequence[Tensor]) -> None:
    """Let batch normalisation forget its statistics and take the mean over the batches.

    Unlike PyTorch's `update_bn` it leaves alone what is in evaluation mode, which is how layers are frozen.
    """
    renewed = [layer for layer in model.modules() if isinstance(layer, _BatchNorm) and layer.training]
    if not renewed:
        return
    momenta = [layer.momentum for layer in renewed]
    for layer in renewed:
        layer.reset_running_stats()
        layer.momentum = None  # which makes it a cumulative mean
    for inputs in batches:
        model(inputs)
    for layer, momentum in zip(renewed, momenta, strict=True):
        layer.momentum = momentum


@dataclass(frozen=True)
class LBFGS:
    """L-BFGS with a strong Wolfe line search, on one batch that it keeps: its differences of gradients need that.

    Attributes:
        name: What tables and figures call it.
        batch: Examples in it.
    """

    name: str
    batch: int

    def settings(self) -> dict[str, Any]:
        """See `Strategy.settings`."""
        return {"name": self.name, "batch": self.batch}

    def start(self, problem: Problem, model: nn.Module, data: Data, generator: torch.Generator) -> Trainer:
        """See `Strategy.start`."""
        parameters = Parameters([{"params": list(model.parameters())}])
        # On one vector, because PyTorch's L-BFGS flattens gradients itself and cannot where they are channels last.
        theta = parameters.read()
        optimizer = torch.optim.LBFGS([theta], max_iter=4, line_search_fn="strong_wolfe")
        decayed = problem.parameter_groups(model)[0]["params"]
        chunks = _chunks(next(batches.endless(data, self.batch, generator)))
        rng = rng_state(parameters.device)
        evaluations = 0

        def closure() -> float:
            nonlocal evaluations
            evaluations += 1
            set_rng_state(parameters.device, rng)  # one dropout mask for all, as for the batch
            parameters.write(theta)
            model.zero_grad()
            total = 0.0
            for inputs, targets in chunks:
                loss = problem.loss(model(inputs), targets) * (len(targets) / self.batch)
                loss.backward()
                total += float(loss.detach())
            _add_l2_gradient(problem, decayed)
            theta.grad = parameters.join([p.grad for p in parameters.tensors])
            return total + problem.l2_term(model)

        def step(spent: float) -> Step:
            before = evaluations
            optimizer.step(closure)
            parameters.write(theta)
            return Step((evaluations - before) * self.batch / problem.batch_size)

        return _Trainer(step, model)


@torch.no_grad()  # else gradients would know that they depend on the weights, and optimizers might differentiate that
def _add_l2_gradient(problem: Problem, weights: list[Tensor]) -> None:
    """Add the gradient of the L2 term to those of the weights; where the loss does not depend on one it is all."""
    for p in weights:
        if p.grad is None:
            p.grad = torch.zeros_like(p)
    grads = [p.grad for p in weights if p.grad is not None]
    if grads:
        torch._foreach_add_(grads, weights, alpha=problem.weight_decay)


# ---------------------------------------------------------------------- second order


@dataclass(frozen=True)
class HF:
    """Hessian-free steps at their default settings, on batches drawn afresh for each.

    The curvature batch and the evaluation batch B̄ are disjoint, unless they are to be the same. The gradient batch
    begins with the curvature batch and is disjoint from B̄ too, as far as the training data suffice.

    Attributes:
        name: What tables and figures call it.
        curvature: Examples for the curvature, m in the paper.
        gradient: Examples for the gradient; m in the paper.
        evaluation: Examples in B̄, 1024 in the paper.
        same: Whether B̄ is B, as in the original method (Martens 2010).
    """

    name: str
    curvature: int
    gradient: int
    evaluation: int
    same: bool = False

    def settings(self) -> dict[str, Any]:
        """See `Strategy.settings`."""
        names = ("name", "curvature", "gradient", "evaluation", "same")
        return {name: getattr(self, name) for name in names}

    def start(self, problem: Problem, model: nn.Module, data: Data, generator: torch.Generator) -> Trainer:
        """See `Strategy.start`."""
        optimizer = HessianFree(problem.parameter_groups(model))
        draw = batches.hessian_free(
            data,
            curvature=self.curvature,
            gradient=self.gradient,
            evaluation=self.evaluation,
            same=self.same,
            generator=generator,
        )

        def step(spent: float) -> Step:
            drawn = next(draw)
            curvature, rest = _chunks(drawn.curvature), _chunks(drawn.gradient_only)
            # The very same list entries where B̄ is B, so that the step knows its losses already.
            evaluation = curvature + rest if self.same else _chunks(drawn.evaluation)
            optimizer.acc_step(
                model,
                problem.loss,
                loss_datalist=evaluation,
                grad_datalist=curvature + rest,
                mvp_datalist=curvature,
                micro_batches_in_memory=len(curvature),
            )
            record = optimizer.last_step
            assert record is not None
            assert record.counts is not None
            # A forward pass is a third of a gradient. The curvature is set up once, and a product costs a gradient.
            judged = record.counts.losses / len(evaluation) * (self.gradient if self.same else self.evaluation)
            work = judged / 3 + self.gradient + (1 + record.counts.products) * self.curvature
            return Step(work / problem.batch_size, math.nan, record)

        return _Trainer(step, model)


_CHUNK = 2048  # examples per forward pass: what a small machine's memory holds with the graph


def _chunks(batch: Split) -> list[tuple[Tensor, Tensor]]:
    pairs = zip(batch.inputs.split(_CHUNK), batch.targets.split(_CHUNK), strict=True)
    return [(inputs, targets) for inputs, targets in pairs if len(targets)]


SGD_CONSTANT = FirstOrder("sgd_constant")
SGD_TENTH = FirstOrder("sgd_tenth", schedule=tenth)
SGD_COSINE = FirstOrder("sgd_cosine", schedule=cosine)
SGD_PLATEAU = FirstOrder("sgd_plateau", schedule=plateau)


def hf_equal(problem: Problem) -> HF:
    """Gradient and curvature on the same examples, in the problem's numbers."""
    return HF("hf_equal", problem.curvature_batch, problem.curvature_batch, problem.evaluation_batch)


def hf_large(problem: Problem) -> HF:
    """The gradient on many more examples than the curvature, in the problem's numbers."""
    return HF("hf_large", problem.curvature_batch, problem.gradient_batch, problem.evaluation_batch)
