"""The most memory that a computation holds at once, counted by PyTorch's allocator."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.networks import Network, Task
from benchmarks.peers import METHODS, Product, reason_for
from benchmarks.steps import make_optimizer, take_step
from latephase import HessianFree

# The profiler announces itself, and that it does not know what was allocated before. (The second setting is for the
# processes that this one starts: it is read when PyTorch is loaded.)
os.environ.setdefault("KINETO_LOG_LEVEL", "99")
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")


class Usage(NamedTuple):
    """Bytes above the level before: at the peak, and in the end."""

    peak: int
    left: int


def memory_used(device: torch.device, work: Callable[[], Any]) -> Usage:
    """Return how far memory rises above its present level while `work` runs, and what is left of that.

    On a CPU the profiler reports every allocation, a kernel's temporary ones too; scratch memory of oneDNN is its
    own. On a GPU it is what the caching allocator hands out.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        torch.cuda.synchronize(device)
        return Usage(torch.cuda.max_memory_allocated(device) - before, torch.cuda.memory_allocated(device) - before)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        work()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    memory = sorted((e for e in events if e.get("name") == "[memory]"), key=lambda e: e["ts"])
    if not memory:
        return Usage(0, 0)
    levels = [e["args"]["Total Allocated"] for e in memory]
    before = levels[0] - memory[0]["args"]["Bytes"]
    return Usage(max(levels) - before, levels[-1] - before)


def measure_memory(network: Network, device: torch.device) -> dict[str, Any]:
    """Return peaks in bytes, of a gradient and of each way to multiply: a set-up and two products."""
    task = Task(network, device)

    def products(method: Callable[[Task], Product]) -> None:
        product = method(task)
        for _ in range(2):
            product(task.v)

    def peaks(method: Callable[[Task], Product]) -> dict[str, Any]:
        try:
            return _peaks(task, partial(products, method))
        except Exception as error:  # whatever it is, it is the answer
            return {"unavailable": reason_for(error)}

    return {
        "resident": _resident_bytes(task),
        "gradient": _resident_bytes(task) + memory_used(device, task.gradient).peak,
        "methods": {name: peaks(method) for name, method in METHODS.items()},
    }


def measure_step_memory(network: Network, device: torch.device) -> dict[str, Any]:
    """Return peaks in bytes of a whole step, judged by another batch of the same size."""
    task = Task(network, device)
    optimizers: list[HessianFree] = []

    def step() -> None:
        if not optimizers:  # made here, so that its state counts
            optimizers.append(make_optimizer(task))
        take_step(task, optimizers[0], network.draw(task.batch, device))

    return _peaks(task, step)


def _peaks(task: Task, work: Callable[[], Any]) -> dict[str, Any]:
    """Return the peak of the first time, which traces the network, and of a later one, at another point."""
    resident = _resident_bytes(task)
    first = memory_used(task.device, work)
    task.move()
    later = memory_used(task.device, work)
    return {"first": resident + first.peak, "later": resident + first.left + later.peak}


def _resident_bytes(task: Task) -> int:
    """Parameters, buffers and batch."""
    return sum(t.nbytes for t in (*task.model.state_dict().values(), task.inputs, task.targets))
