"""What a whole step of the optimizer takes, and what accumulating micro-batches adds."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.networks import Network, Task
from benchmarks.peers import METHODS
from benchmarks.timing import ratios, seconds, set_up_and_multiply, spread
from latephase import HessianFree
from latephase.curvature import GGN

CG_ITERATIONS = 10
MICRO_BATCHES = 8

Data = tuple[Tensor, Tensor]


def make_optimizer(task: Task) -> HessianFree:
    """Return one whose steps all have the same number of CG iterations, so that their times can be compared."""
    return HessianFree(task.params, damping=0.01, cg_max_iter=CG_ITERATIONS, martens_conv_crit=False)


def take_step(task: Task, optimizer: HessianFree, evaluation: Data) -> None:
    """Take a step on the task's batch, judged by the batch ``evaluation``."""
    inputs, targets = evaluation

    def evaluate() -> Tensor:
        return task.loss_func(task.model(inputs), targets)

    optimizer.step(task.closure(), evaluate=evaluate)


def take_accumulating_step(task: Task, optimizer: HessianFree, evaluation: Data, in_memory: int) -> None:
    """Take the same step with both batches cut into micro-batches."""
    model_list, evaluation_list = (
        list(zip(inputs.chunk(MICRO_BATCHES), targets.chunk(MICRO_BATCHES), strict=True))
        for inputs, targets in ((task.inputs, task.targets), evaluation)
    )
    optimizer.acc_step(
        task.model, task.loss_func, evaluation_list, model_list, model_list, micro_batches_in_memory=in_memory
    )


@contextmanager
def unchecked() -> Iterator[None]:
    """Take steps without what holds every point against its gradient, to see what that takes."""
    ladder = GGN.ladder()
    check_again, first_product = ladder.check_again, GGN._hold_against_gradient
    ladder.check_again = lambda *_: None
    GGN._hold_against_gradient = lambda *_: None  # type: ignore[method-assign]
    try:
        yield
    finally:
        ladder.check_again, GGN._hold_against_gradient = check_again, first_product  # type: ignore[method-assign]


def take_unchecked_step(task: Task, optimizer: HessianFree, evaluation: Data) -> None:
    """Take the same step without those checks."""
    with unchecked():
        take_step(task, optimizer, evaluation)


STEPS: dict[str, Callable[[Task, HessianFree, Data], None]] = {
    "step": take_step,
    "unchecked": take_unchecked_step,
    "all_in_memory": partial(take_accumulating_step, in_memory=MICRO_BATCHES),
    "one_in_memory": partial(take_accumulating_step, in_memory=1),
}


def measure_steps(network: Network, device: torch.device, rounds: int) -> dict[str, Any]:
    """Compare steps on a batch with steps on its micro-batches, on the same data from the same point.

    The first round warms up and shows how far the steps differ in their results.
    """
    micro_batch = network.batch if device.type == "cuda" else network.micro_batch
    task = Task(network, device, MICRO_BATCHES * micro_batch)
    optimizers = {name: make_optimizer(task) for name in STEPS}
    fresh_state = copy.deepcopy(optimizers["step"].state_dict())

    times: dict[str, list[float]] = {name: [] for name in ("gradient", "setup", *STEPS)}
    moves: dict[str, Tensor] = {}
    for number in range(1 + rounds):
        task.move()
        evaluation = network.draw(task.batch, device)
        theta = _read(task)
        measured = {"gradient": seconds(device, task.gradient)}
        measured["setup"], _ = set_up_and_multiply(task, METHODS["latephase"])
        for name, take in STEPS.items():
            optimizers[name].load_state_dict(fresh_state)
            measured[name] = seconds(device, partial(take, task, optimizers[name], evaluation))
            moves[name] = moves.get(name, _read(task) - theta)
            _write(task, theta)
        for name, value in measured.items():
            if number > 0:
                times[name].append(value)

    return {
        "batch": task.batch,
        "micro_batch": micro_batch,
        "cg_iterations": CG_ITERATIONS,
        "seconds": spread(times["step"]),
        "in_gradients": ratios(times["step"], times["gradient"]),
        "setup_share": ratios(times["setup"], times["step"]),
        "checks": ratios(times["step"], times["unchecked"]),
        "all_in_memory": ratios(times["all_in_memory"], times["step"]),
        "one_in_memory": ratios(times["one_in_memory"], times["step"]),
        "differences": {name: _difference(move, moves["step"]) for name, move in moves.items() if name != "step"},
        "counts": {name: _counts(optimizer) for name, optimizer in optimizers.items()},
    }


def _counts(optimizer: HessianFree) -> dict[str, int]:
    assert optimizer.last_step is not None
    assert optimizer.last_step.counts is not None
    return asdict(optimizer.last_step.counts)


def _difference(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm()) if bool(b.any()) else float(a.norm())


def _read(task: Task) -> Tensor:
    return torch.nn.utils.parameters_to_vector(task.params).detach().clone()


def _write(task: Task, theta: Tensor) -> None:
    with torch.no_grad():
        for p, piece in zip(task.params, theta.split([p.numel() for p in task.params]), strict=True):
            p.copy_(piece.view_as(p))
