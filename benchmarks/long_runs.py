"""Whether the paper's steps on mini-batches come to a standstill: many of them, from the end of a first phase.

    python -m benchmarks.long_runs --problem fmnist_allcnn --sizes 256 512 1024 2048 --steps 300 --seeds 5 --out long

A run stands still where, over twenty steps, the objective on all training data does not fall and λ is at a bound: the
rule wants to change it, and it stays. A run that the store has is not made again.
"""

import argparse
import sys
import time
from pathlib import Path

import torch

from benchmarks.runs import Runs, add_arguments, median_and_range, prepared
from latephase.parts.damping import LevenbergMarquardt
from latephase.records import StepRecord
from latephase.strategies.hf import DECLARATIONS
from latephase.study.data import Data
from latephase.study.problems import Problem
from latephase.study.runs.evaluation import evaluate
from latephase.study.runs.training import Checkpoint

WINDOW = 20  # steps
RULE = LevenbergMarquardt()


def at_a_bound(record: StepRecord) -> bool:
    """Whether λ stays where it is though the reduction ratio asks for another."""
    ratio = record.reduction_ratio
    return record.next_damping == record.damping and (ratio is None or not RULE.lower <= ratio <= RULE.upper)


def run(problem: Problem, data: Data, start: Path, size: int, steps: int, seed: int) -> dict[str, object]:
    """Take the steps; return the objective and the test metric after each window, and in how many it stood still."""
    torch.manual_seed(seed)
    model = problem.build_model()
    model.load_state_dict(Checkpoint.load(start).network)
    declared = next(d for d in DECLARATIONS if d.name == "hf_m")
    strategy = declared.build(f"hf_m{size}", problem, len(data.train))
    trainer = strategy.start(problem, model, data, torch.Generator().manual_seed(seed))
    begin, losses, metrics, dampings, still = time.perf_counter(), [], [], [], 0
    quality = evaluate(problem, model, data)
    losses.append(quality.train_loss)
    for first in range(0, steps, WINDOW):
        records = [trainer.step(0.0).record for _ in range(min(WINDOW, steps - first))]
        quality = evaluate(problem, model, data)
        still += quality.train_loss >= losses[-1] and all(at_a_bound(record) for record in records)
        losses.append(quality.train_loss)
        metrics.append(quality.test_metric)
        dampings.append(records[-1].next_damping)
    seconds = time.perf_counter() - begin
    return {"losses": losses, "metrics": metrics, "dampings": dampings, "still": still, "seconds": seconds}


def table(results: dict[str, dict], problem: str, steps: int, sizes: list[int]) -> str:
    """Medians and ranges over the seeds."""
    lines = [
        f"| {problem}, {steps} steps | train loss before | after | test metric | λ at the end | stood still | seeds |",
        "| :-- | --: | --: | --: | --: | --: | --: |",
    ]
    for size in sizes:
        rows = [value for key, value in results.items() if key.startswith(f"{problem}/{steps}/{size}/")]
        if rows:
            after, metric, damping = (
                median_and_range([row[key][-1] for row in rows]) for key in ("losses", "metrics", "dampings")
            )
            still = sum(row["still"] for row in rows)
            windows = sum(len(row["metrics"]) for row in rows)
            cells = f"{rows[0]['losses'][0]:.4g} | {after} | {metric} | {damping} | {still} of {windows} windows"
            lines.append(f"| m = {size} | {cells} | {len(rows)} |")
    return "\n".join(lines)


def main() -> None:
    """Read the arguments, make the runs that are missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problem", default="fmnist_allcnn")
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 512, 1024, 2048], help="of the model batch")
    parser.add_argument("--steps", type=int, default=300)
    add_arguments(parser)
    options = parser.parse_args()
    problem, data, start = prepared(options)
    runs = Runs(options.out)
    for seed in range(options.seeds):
        for size in options.sizes:
            key = f"{problem.name}/{options.steps}/{size}/{seed}"
            runs.once(key, run, problem, data, start, size, options.steps, seed)
    sys.stdout.write(table(runs.results, problem.name, options.steps, options.sizes) + "\n")


if __name__ == "__main__":
    main()
