"""The parts of a network's row, each measured in a process of its own."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any

import torch

from benchmarks.memory import measure_memory, measure_step_memory
from benchmarks.networks import NETWORKS, Network
from benchmarks.peers import reason_for
from benchmarks.steps import measure_steps
from benchmarks.timing import measure_products

PARTS: dict[str, Callable[[Network, torch.device, int], dict[str, Any]]] = {
    "products": measure_products,
    "memory": lambda network, device, rounds: measure_memory(network, device),
    "step_memory": lambda network, device, rounds: measure_step_memory(network, device),
    "steps": lambda network, device, rounds: measure_steps(network, device, (rounds + 1) // 2),
}


def measure(part: str, name: str, device: str, rounds: int, threads: int) -> dict[str, Any]:
    """Measure a part of a network's row where nothing is cached, warm or fragmented yet."""
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as fresh_process:
        result = fresh_process.submit(_measure, part, name, device, rounds, threads)
        try:
            return result.result()
        except BrokenProcessPool:
            return {"error": "the process died, of too little memory perhaps"}


def _measure(part: str, name: str, device: str, rounds: int, threads: int) -> dict[str, Any]:
    torch.set_num_threads(threads)
    torch.backends.cudnn.allow_tf32 = False
    try:
        return PARTS[part](NETWORKS[name], torch.device(device), rounds)
    except Exception as error:  # the other rows are still worth having
        return {"error": reason_for(error)}
