"""A user's network, loss and optimizer as a task for strategies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from latephase.finishing.candidates import ADAM_LR, usable
from latephase.tasks.closure_task import ClosureTask
from latephase.tasks.task import Group, Task


@dataclass(frozen=True, kw_only=True)
class _Grouped(Task):
    """A task whose L2 term is that of an optimizer's parameter groups, each with a weight decay of its own.

    Attributes:
        groups: They; none means that all parameters are trained, without an L2 term.
    """

    groups: tuple[Group, ...] = ()

    def parameter_groups(self, model: nn.Module) -> list[Group]:
        """See `Task.parameter_groups`."""
        return list(self.groups) or [
            {"params": [p for p in model.parameters() if p.requires_grad], "weight_decay": 0.0}
        ]


@dataclass(frozen=True, kw_only=True)
class _GroupedClosure(ClosureTask, _Grouped):
    pass


def task_of(
    loss: Callable[..., object],
    optimizer: torch.optim.Optimizer | None,
    batch_size: int,
    *,
    closure: bool,
    process_group: object | None = None,
) -> Task:
    """Return a task.

    Args:
        loss: Maps (outputs, targets) to the mean loss; or the closure.
        optimizer: Has trained the network so far: its rate and its weight decay, where that is an L2 term.
        batch_size: Examples per gradient.
        closure: Whether `loss` is a closure.
        process_group: See `Task`.
    """
    settings = {
        "name": "finish",
        "lr": _rate(optimizer),
        "weight_decay": 0.0,
        "batch_size": batch_size,
        "curvature_batch": batch_size,
        "gradient_batch": batch_size,
        "evaluation_batch": batch_size,
        "groups": _groups(optimizer),
        "process_group": process_group,
    }
    make: Callable[..., Task] = _GroupedClosure if closure else _Grouped
    return make(closure=loss, **settings) if closure else make(loss=loss, **settings)


def _rate(optimizer: torch.optim.Optimizer | None) -> float:
    if optimizer is None or not usable(optimizer):
        return ADAM_LR
    rates = [float(group["lr"]) for group in optimizer.param_groups]
    if max(rates) <= 0.0:
        raise ValueError(
            "the optimizer's learning rate is 0 (its schedule has ended?), so that nothing can be decayed; set it to "
            "what the training had, or leave optimizer out"
        )
    return max(rates)


def _groups(optimizer: torch.optim.Optimizer | None) -> tuple[Group, ...]:
    if optimizer is None:
        return ()
    return tuple(
        {"params": [p for p in group["params"] if p.requires_grad], "weight_decay": l2(optimizer, group)}
        for group in optimizer.param_groups
    )


def l2(optimizer: torch.optim.Optimizer, group: dict[str, object]) -> float:
    """Return wd of the L2 term ½·wd·‖θ‖² in the objective; decoupled weight decay (AdamW's) is no part of that."""
    decoupled = isinstance(optimizer, torch.optim.AdamW) or bool(group.get("decoupled_weight_decay"))
    known = type(optimizer).__module__.startswith("torch.optim") or type(optimizer).__name__ == "HessianFree"
    decay = group.get("weight_decay", 0.0)
    return float(decay) if known and not decoupled and isinstance(decay, (int, float, Tensor)) else 0.0
