"""The most memory that a computation holds at once, counted by PyTorch's allocator."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks.networks import Network, Task
from benchmarks.peers import METHODS, reason_for
from benchmarks.steps import make_optimizer, take_step

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # The profiler announces itself otherwise.


def peak_bytes(device: torch.device, work: Callable[[], Any]) -> int:
    """Return how far memory rises above its present level while ``work`` runs.

    On a CPU the profiler reports every allocation, a kernel's temporary ones too; scratch memory of oneDNN is its
    own. On a GPU it is what the caching allocator hands out.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        work()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    memory = sorted((e for e in events if e.get("name") == "[memory]"), key=lambda e: e["ts"])
    if not memory:
        return 0
    before = memory[0]["args"]["Total Allocated"] - memory[0]["args"]["Bytes"]
    return max(e["args"]["Total Allocated"] for e in memory) - before


def measure_memory(network: Network, device: torch.device) -> dict[str, Any]:
    """Return peaks in bytes, parameters and batch included: of a gradient, of each way to multiply, of a step.

    A way to multiply is measured over its first set-up and two products, a step over the first two steps, so that
    tracing counts, and what is kept from one step to the next.
    """
    task = Task(network, device)
    evaluation = network.draw(task.batch, device)
    resident = sum(t.nbytes for t in (*task.model.state_dict().values(), task.inputs, task.targets))

    def peak(work: Callable[[], Any], data: Sequence[Tensor] = ()) -> int | str:
        try:
            return resident + sum(t.nbytes for t in data) + peak_bytes(device, work)
        except Exception as error:  # whatever it is, it is the answer
            return reason_for(error)

    def products(name: str) -> None:
        product = METHODS[name](task)
        for _ in range(2):
            product(task.v)

    def steps() -> None:
        optimizer = make_optimizer(task)
        for _ in range(2):
            take_step(task, optimizer, evaluation)

    return {
        "resident": resident,
        "gradient": peak(task.gradient),
        "methods": {name: peak(partial(products, name)) for name in METHODS},
        "step": peak(steps, evaluation),
    }
