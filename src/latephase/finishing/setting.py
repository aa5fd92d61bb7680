"""What a finish works on: what is trained, on what data, and what states are judged by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from latephase import checks
from latephase.distributed import Ranks
from latephase.finishing.data import examples, share_of
from latephase.finishing.judge import Judge
from latephase.finishing.prices import Size, size_of
from latephase.finishing.task import task_of
from latephase.tasks.closure_task import ClosureTask, no_examples
from latephase.tasks.split import Data
from latephase.tasks.task import Task

HELD_OUT, OBJECTIVE = "held-out loss", "objective"  # what states may be judged by
WITHOUT = "without held-out data, states are compared by the objective on the training data"


@dataclass(frozen=True)
class Setting:
    """What is trained, on what, and judged by what.

    Attributes:
        task: The loss and the first phase's settings.
        data: What to train on, and what to judge by.
        size: What a step's price follows from.
        judge: Gives states their scores.
        remarks: What the report is to say of the data.
    """

    task: Task
    data: Data
    size: Size
    judge: Judge
    remarks: tuple[str, ...] = ()


def on_closures(
    model: nn.Module,
    closure: Callable[..., object],
    held_out: object,
    optimizer: torch.optim.Optimizer | None,
    process_group: object | None,
) -> Setting:
    """Return the setting of a closure, judged by the closure `held_out`; by itself if that is None.

    The other arguments are those of `latephase.finish`.

    Raises:
        TypeError: If `held_out` is no function.
    """
    device = device_of(model)
    task = task_of(closure, optimizer, 1, closure=True, process_group=process_group)
    assert isinstance(task, ClosureTask)
    data, by_itself = no_examples(device), held_out is None
    judging: Any = checks.function("valid_data", closure if by_itself else held_out)
    judge = Judge(task, data.train, device, OBJECTIVE if by_itself else HELD_OUT, by_itself, judging)
    return Setting(task, data, size_of(task, model, data.train), judge)


def on_examples(
    model: nn.Module,
    loss_func: Callable[..., object],
    train_data: object,
    held_out: object,
    optimizer: torch.optim.Optimizer | None,
    batch_size: int | None,
    process_group: object | None,
    ranks: Ranks,
) -> Setting:
    """Return the setting of a loss function on data, judged by the data `held_out`; by the objective if they are None.

    The other arguments are those of `latephase.finish`.

    Raises:
        TypeError: If data are of none of the forms that `latephase.finishing.data.examples` takes.
        ValueError: If they are empty, or do not fit together.
    """
    device = device_of(model)
    train = share_of("train_data", examples("train_data", train_data, device), ranks)
    batch = min(train.size_of_batches(batch_size), len(train.split))
    task = task_of(loss_func, optimizer, batch, closure=False, process_group=process_group)
    by_itself = held_out is None
    valid = train if by_itself else share_of("valid_data", examples("valid_data", held_out, device), ranks)
    found = [WITHOUT if by_itself else "", train.remark, valid.remark]
    judge = Judge(task, valid.split, device, OBJECTIVE if by_itself else HELD_OUT, by_itself)
    data, size = Data(train.split, valid.split), size_of(task, model, train.split)
    return Setting(task, data, size, judge, tuple(remark for remark in dict.fromkeys(found) if remark))


def device_of(model: nn.Module) -> torch.device:
    """Return where the parameters that are trained are."""
    return next(p for p in model.parameters() if p.requires_grad).device
