"""A step with `latephase.keep_freed_memory()` and without, beside one of SGD: processor time and page faults.

    python -m benchmarks.freed_memory --networks 3c3d mlp --rounds 4

One thread. What has been called cannot be taken back, so each way is a process of its own, one after the other; a first
round of each warms up. Both ways have to take the same Hessian-free step to the bit.
"""

import argparse
import json
import resource
import subprocess
import sys
from statistics import median

import torch

from benchmarks.closures import explicit
from benchmarks.networks import NETWORKS, Task
from benchmarks.steps import make_optimizer
from latephase import keep_freed_memory

WAYS = ("as it is", "kept")


def measure(name: str, way: str, rounds: int) -> dict[str, object]:
    """Return processor seconds and page faults of each round by optimizer, and the sum of the parameters' bits."""
    torch.set_num_threads(1)
    if way == "kept" and not keep_freed_memory():
        raise SystemExit("freed memory can be kept with glibc alone")
    task = Task(NETWORKS[name], torch.device("cpu"))
    ours, sgd = make_optimizer(task), torch.optim.SGD(task.params, lr=1e-6)

    def by_sgd() -> None:
        sgd.zero_grad()
        task.loss_func(task.model(task.inputs), task.targets).backward()
        sgd.step()

    found: dict[str, object] = {}
    for optimizer, step in {"HessianFree": lambda: explicit(task, ours), "SGD": by_sgd}.items():
        spent = []
        for _ in range(1 + rounds):
            before = resource.getrusage(resource.RUSAGE_SELF)
            step()
            after = resource.getrusage(resource.RUSAGE_SELF)
            seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            spent.append((seconds, after.ru_minflt - before.ru_minflt))
        found[optimizer] = spent[1:]
        found.setdefault("end", [float(p.detach().double().sum()) for p in task.params])
    return found


def row(name: str, optimizer: str, results: dict[str, dict]) -> str:
    """A line of the table: medians by way, and their ratio."""
    seconds, faults = ([median(r[i] for r in results[way][optimizer]) for way in WAYS] for i in (0, 1))
    cells = [*(f"{s:.3f}" for s in seconds), f"{seconds[1] / seconds[0]:.2f}", *(f"{f:,.0f}" for f in faults)]
    return f"| {name} | {optimizer} | {' | '.join(cells)} |"


def main() -> int:
    """Read the arguments, measure, print the table; 1 if the two ways differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=["3c3d"], metavar="NAME")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--way", choices=WAYS, help="measure one way of the first network, and print it as JSON")
    options = parser.parse_args()
    if options.way:
        sys.stdout.write(json.dumps(measure(options.networks[0], options.way, options.rounds)))
        return 0
    lines = [
        "| | | s, as it is | s, kept | kept / as it is | faults, as it is | faults, kept |",
        "| :-- | :-- | --: | --: | --: | --: | --: |",
    ]
    for name in options.networks:
        command = [sys.executable, "-m", "benchmarks.freed_memory", "--networks", name, "--rounds", str(options.rounds)]
        results = {way: json.loads(subprocess.check_output([*command, "--way", way])) for way in WAYS}
        if results["as it is"]["end"] != results["kept"]["end"]:
            sys.stderr.write(f"{name}: the two ways do not agree\n")
            return 1
        lines += [row(name, optimizer, results) for optimizer in ("HessianFree", "SGD")]
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
