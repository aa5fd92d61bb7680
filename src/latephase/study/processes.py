"""Processes that torchrun has started, and that carry out a command together."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist


def started_together() -> bool:
    """Whether torchrun has started this process."""
    return dist.is_available() and dist.is_torchelastic_launched()


def is_first() -> bool:
    """Whether this process is the one that writes and prints: any one that is alone, and torchrun's first."""
    return not started_together() or os.environ["RANK"] == "0"


def own_device(name: str) -> str:
    """Return the device of this process, of those on one machine, where all were given the same name.

    >>> own_device("cpu"), own_device("cuda:1")
    ('cpu', 'cuda:1')
    """
    device = torch.device(name)
    if not started_together() or device.type == "cpu" or device.index is not None:
        return name
    return f"{device.type}:{os.environ['LOCAL_RANK']}"


@contextmanager
def joined(device: torch.device) -> Iterator[str | None]:
    """Join the processes that torchrun has started, and yield what `process_group` is to be: None without torchrun."""
    if not started_together():
        yield None
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield "world"
    finally:
        dist.destroy_process_group()
