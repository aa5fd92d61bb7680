"""What several processes spend on talking to each other in a step: 2 and 4 of them by gloo on this machine.

    python -m benchmarks.scale

Each rank has a batch of its own, of the same size whatever their number. Ranks that share a core wait for each other,
so only as many as there are cores say what computation costs; what is sent is the same everywhere.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F  # noqa: N812
from tests.ranks import together
from torch import nn

from latephase import HessianFree
from latephase.distributed import Together

STEPS, CG_ITERATIONS = 5, 10
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "2C2D-like CNN, 256 images": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 16, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(32 * 49, 128),
            nn.ReLU(),
            nn.Linear(128, 10),
        ),
        (1, 28, 28),
        256,
    ),
    "MLP, 1,024 images": (
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 10)),
        (1, 28, 28),
        1024,
    ),
}


def measure(rank: int, name: str, group: str | None) -> tuple[int, float, float, int]:
    """P, seconds per step, those of them in collectives, and how many of these."""
    make, shape, batch = NETWORKS[name]
    torch.manual_seed(0)
    model = make()
    torch.manual_seed(1 + rank)
    x, y = torch.randn(batch, *shape), torch.randint(0, 10, (batch,))
    opt = HessianFree(
        model.parameters(), cg_max_iter=CG_ITERATIONS, martens_conv_crit=False, process_group=group, damping=10.0
    )
    waits: list[float] = []
    exchange = Together._exchange

    def timed(self: Together, collective: Callable[[], object]) -> None:
        begin = time.perf_counter()
        exchange(self, collective)
        waits.append(time.perf_counter() - begin)

    steps = []
    with mock.patch.object(Together, "_exchange", timed):
        for number in range(STEPS):
            if number == 2:
                waits.clear()
            begin = time.perf_counter()
            opt.acc_step(model, F.cross_entropy, [(x, y)])
            steps.append(time.perf_counter() - begin)
    counted = STEPS - 2
    numel = sum(p.numel() for p in model.parameters())
    return numel, statistics.median(steps[2:]), sum(waits) / counted, len(waits) // counted


def main() -> None:
    """Print the table."""
    lines = [
        "| network per rank | P | ranks | a step | in collectives | their number |",
        "| :-- | --: | --: | --: | --: | --: |",
    ]
    for name in NETWORKS:
        for ranks in (1, 2, 4):
            results: list[Any] = together(
                ranks, Path(tempfile.mkdtemp()), measure, name, "world" if ranks > 1 else None
            )
            numel, step, waiting, count = results[0]
            lines.append(
                f"| {name} | {numel:,} | {ranks} | {step:.3g} s | {waiting:.2g} s ({waiting / step:.0%}) | {count} |"
            )
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
