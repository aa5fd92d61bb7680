"""`latephase.finish` beside each of its strategies alone: the same call, budget and clock, from the same checkpoint.

    python -m benchmarks.finishes --problem digits_cnn --budget 40s --seeds 5 --out finishes

Half of a problem's test data are what states are compared by, the other half what the results are reported on; of
equations it is the objective, and the error of the solution. A run that the store has is not made again.
"""

import argparse
import sys
import time
from pathlib import Path

import torch
from torch import nn

import latephase
from benchmarks.runs import Runs, add_arguments, median_and_range, prepared
from latephase.finishing.candidates import STRATEGIES
from latephase.study.data import Data
from latephase.study.problems import Problem
from latephase.study.runs.evaluation import evaluate
from latephase.study.runs.training import Checkpoint

SHOWN = ("test_loss", "test_metric", "train_loss")
COMPETITORS = {"finish": STRATEGIES, **{name: (name,) for name in STRATEGIES}}


def first_optimizer(problem: Problem, model: nn.Module) -> torch.optim.Optimizer:
    """The one that the training was by, without its memory."""
    groups = problem.parameter_groups(model)
    if problem.first_phase == "sgd_constant":
        return torch.optim.SGD(groups, lr=problem.lr)
    return torch.optim.Adam(groups, lr=1e-3)


def as_trained(problem: Problem, start: Path) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Return network and optimizer as a checkpoint has them."""
    saved, model = Checkpoint.load(start), problem.build_model()
    model.load_state_dict(saved.network)
    optimizer = first_optimizer(problem, model)
    optimizer.load_state_dict(saved.optimizer)
    return model, optimizer


def run(problem: Problem, data: Data, start: Path, competitor: str, budget: str, seed: int) -> dict[str, object]:
    """Finish once, and measure."""
    model, optimizer = as_trained(problem, start)
    equation = not problem.metric.higher_is_better and "L2 error" in problem.metric.name
    odd, even = (data.test.take(slice(first, None, 2)) for first in (1, 0))
    begin = time.perf_counter()
    report = latephase.finish(
        model, problem.loss, (data.train.inputs, data.train.targets), budget=budget, optimizer=optimizer,
        valid_data=None if equation else (even.inputs, even.targets), batch_size=problem.batch_size,
        strategies=COMPETITORS[competitor], seed=seed, progress=False,
    )  # fmt: skip
    seconds = time.perf_counter() - begin
    quality = evaluate(problem, model, Data(data.train, data.test if equation else odd))
    return {**vars(quality), "seconds": seconds, "best_by": report.best_by, "report": str(report)}


def table(results: dict[str, dict[str, object]], problem: str, budget: str) -> str:
    """Medians and spreads over the seeds."""
    lines = [
        f"| {problem}, {budget} | held-out loss | metric | train loss | seeds |",
        "| :-- | --: | --: | --: | --: |",
    ]
    for competitor in COMPETITORS:
        rows = [v for k, v in results.items() if k.split("/")[:3] == [problem, budget, competitor]]
        if rows:
            cells = [median_and_range([float(str(row[key])) for row in rows]) for key in SHOWN]
            lines.append(f"| {competitor} | {' | '.join(cells)} | {len(rows)} |")
    return "\n".join(lines)


def main() -> None:
    """Read the arguments, make the runs that are missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--problem", required=True)
    parser.add_argument("--budget", required=True)
    parser.add_argument("--competitors", default=",".join(COMPETITORS))
    add_arguments(parser)
    options = parser.parse_args()
    problem, data, start = prepared(options)
    runs = Runs(options.out)
    for seed in range(options.seeds):
        for competitor in options.competitors.split(","):
            key = f"{problem.name}/{options.budget}/{competitor}/{seed}"
            runs.once(key, run, problem, data, start, competitor, options.budget, seed)
    sys.stdout.write(table(runs.results, problem.name, options.budget) + "\n")


if __name__ == "__main__":
    main()
