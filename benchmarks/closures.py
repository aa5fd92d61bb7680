"""What it takes to find the outputs in an ordinary closure: whole steps with one, beside steps with `(loss, outputs)`.

    python -m benchmarks.closures --networks 3c3d mlp lstm --rounds 10

Both take the same step from the same point, one after the other in each round, in turns first. In all rounds, the one
that warms up and is not timed among them, they have to agree to the bit.
"""

import argparse
import copy
import sys
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from benchmarks.networks import NETWORKS, Task
from benchmarks.steps import make_optimizer
from benchmarks.timing import ratios, seconds
from latephase import HessianFree

CPU = torch.device("cpu")


def explicit(task: Task, optimizer: HessianFree) -> None:
    """Take a step with a closure that returns the outputs beside the loss."""
    optimizer.step(task.closure())


def ordinary(task: Task, optimizer: HessianFree) -> None:
    """Take the same step with a closure such as any optimizer takes."""

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = task.loss_func(task.model(task.inputs), task.targets)
        loss.backward()
        return loss

    optimizer.step(closure)


Way = Callable[[Task, HessianFree], None]
WAYS: dict[str, Way] = {"explicit": explicit, "ordinary": ordinary}


def measure(name: str, rounds: int) -> tuple[bool, dict[str, float]]:
    """Return whether both ways are equal to the bit in all rounds, and the spread of ordinary over explicit.

    The first round warms up.
    """
    task = Task(NETWORKS[name], CPU)
    optimizer = make_optimizer(task)
    fresh = copy.deepcopy(optimizer.state_dict())
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    equal = True
    for number in range(1 + rounds):
        task.move()
        theta, ends = torch.nn.utils.parameters_to_vector(task.params).detach().clone(), []
        for way in list(WAYS)[:: 1 if number % 2 else -1]:
            optimizer.load_state_dict(fresh)
            took = seconds(CPU, partial(WAYS[way], task, optimizer))
            times[way].extend([took] if number else [])
            ends.append(torch.nn.utils.parameters_to_vector(task.params).detach().clone())
            torch.nn.utils.vector_to_parameters(theta.clone(), task.params)
        equal &= torch.equal(*ends) and not torch.equal(ends[0], theta)
    return equal, ratios(times["ordinary"], times["explicit"])


def main() -> int:
    """Read the arguments, compare, print the table; 1 if the two ways differ anywhere."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS), metavar="NAME")
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines, failed = ["| | ordinary / explicit | quartiles | equal to the bit |", "| :-- | --: | --: | :-- |"], False
    for name in options.networks:
        equal, ratio = measure(name, options.rounds)
        failed |= not equal
        quartiles = f"{ratio['q1']:.3f} to {ratio['q3']:.3f}"
        lines.append(f"| {name} | {ratio['median']:.3f} | {quartiles} | {'yes' if equal else 'no'} |")
    sys.stdout.write("\n".join(lines) + "\n")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
