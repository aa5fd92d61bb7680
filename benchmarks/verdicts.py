"""`latephase.amenability` beside what comes of it: a decay alone and Hessian-free steps alone, for the same seconds.

    python -m benchmarks.verdicts --out verdicts

From a third of each training and from its end. The verdict is right if second-order steps were lower where it is yes,
and were not where it is no: in the objective of equations, else on test data that chose nothing.
"""

import argparse
import math
import statistics
import sys
from pathlib import Path

import torch

import latephase
from benchmarks.finishes import as_trained
from benchmarks.finishes import run as finish
from benchmarks.runs import Runs, checkpoint
from latephase.study.data import Data
from latephase.study.problems import Problem, find_problem
from latephase.study.runs.evaluation import evaluate

BURGERS, CONVECTION = "benchmarks/equations.py:burgers", "benchmarks/equations.py:convection"
TRAININGS = {  # epochs of each, and for how many seconds both are given
    "poisson_pinn": ((167, 500), 10),
    "poisson_2d_257": ((100, 300), 20),
    "poisson_2d_10k": ((33, 100), 20),
    BURGERS: ((100, 300), 20),
    CONVECTION: ((33, 100), 20),
    "digits_cnn": ((33, 100), 10),
    "friedman1": ((10, 30), 10),
    "fmnist_allcnn": ((1,), 20),
}
ALONE = ("decay", "hessian-free")


def verdict(problem: Problem, data: Data, start: Path) -> dict[str, object]:
    """Ask, and evaluate the network as it is."""
    model, optimizer = as_trained(problem, start)
    given = (data.train.inputs, data.train.targets)
    found = latephase.amenability(model, problem.loss, given, optimizer=optimizer, batch_size=problem.batch_size)
    return {
        "amenable": found.amenable,
        "signal": found.signal if math.isfinite(found.signal) else None,
        "report": str(found),
        **vars(evaluate(problem, model, data)),
    }


def row(results: dict[str, dict[str, object]], training: str, seconds: int, measure: str) -> tuple[list[str], bool]:
    """Return the cells of a training, and whether its verdict was right."""
    found = results[f"{training}/verdict"]
    decay, hf = (
        statistics.median(float(str(v[measure])) for k, v in results.items() if k.startswith(f"{training}/{name}/"))
        for name in ALONE
    )
    right = found["amenable"] == (hf < decay)
    signal = "∞" if found["signal"] is None else f"{float(str(found['signal'])):.2g}"
    before = float(str(found[measure]))
    cells = [training.replace("/", ", ") + " epochs", str(seconds), signal, "yes" if found["amenable"] else "no"]
    return [*cells, f"{before:.3g}", f"{decay:.3g}", f"{hf:.3g}", "✓" if right else "✗"], right


def main() -> None:
    """Train, ask, spend the seconds, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--problems", nargs="+", default=list(TRAININGS), choices=TRAININGS)
    parser.add_argument("--seconds", type=int, default=None, help="for each, in place of the table's")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--data-dir", type=Path, default=None)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    latephase.keep_freed_memory()  # as the command line does
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    runs, rows = Runs(options.out), []
    for name in options.problems:
        (lengths, seconds), problem = TRAININGS[name], find_problem(name)
        seconds, data = options.seconds or seconds, problem.load_data(options.data_dir)
        measure = "train_loss" if "L2 error" in problem.metric.name else "test_loss"
        for epochs in lengths:
            start, training = checkpoint(problem, data, epochs, options.out), f"{problem.name}/{epochs}"
            runs.once(f"{training}/verdict", verdict, problem, data, start)
            for seed in range(options.seeds):
                for alone in ALONE:
                    key = f"{training}/{alone}/{seed}"
                    runs.once(key, finish, problem, data, start, alone, f"{seconds}s", seed)
            rows.append(row(runs.results, training, seconds, measure))
    lines = ["| | seconds | signal | verdict | before | decay | Hessian-free | right |", "| :-- " + "| --: " * 7 + "|"]
    lines += [f"| {' | '.join(cells)} |" for cells, _ in rows]
    sys.stdout.write("\n".join([*lines, f"\n{sum(right for _, right in rows)} of {len(rows)}"]) + "\n")


if __name__ == "__main__":
    main()
