"""What benchmarks that take hours share: runs that are made once, from one checkpoint, and how they are summed up."""

import argparse
import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

import latephase
from latephase.study.data import Data
from latephase.study.problems import Problem, find_problem
from latephase.study.runs.training import Checkpoint, train


class Runs:
    """Results by key in a folder's `results.json`, which is whole or not there.

    Attributes:
        results: All so far.
    """

    def __init__(self, folder: Path) -> None:
        self._file = folder / "results.json"
        self.results: dict[str, dict[str, Any]] = json.loads(self._file.read_text()) if self._file.exists() else {}

    def once(self, key: str, make: Callable[..., dict[str, Any]], *arguments: Any) -> None:
        """Make a run that is not there yet, and keep it."""
        if key in self.results:
            return
        self.results[key] = make(*arguments)
        part = self._file.with_suffix(".part")
        part.write_text(json.dumps(self.results, indent=1))
        part.replace(self._file)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `prepared` needs, and how many seeds there are."""
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=None, help="of the training; by default the problem's")
    parser.add_argument("--data-dir", type=Path, default=None)
    parser.add_argument("--out", type=Path, required=True)


def prepared(options: argparse.Namespace) -> tuple[Problem, Data, Path]:
    """Return the problem `options.problem`, its data, and the file of its last checkpoint in `options.out`."""
    latephase.keep_freed_memory()  # as the command line does
    problem = find_problem(options.problem)
    if problem.cpu_threads is not None:
        torch.set_num_threads(problem.cpu_threads)
    options.out.mkdir(parents=True, exist_ok=True)
    data = problem.load_data(options.data_dir)
    return problem, data, checkpoint(problem, data, options.epochs or problem.epochs, options.out)


def checkpoint(problem: Problem, data: Data, epochs: int, folder: Path) -> Path:
    """Train once, and return the file of the last checkpoint."""
    path = folder / f"{problem.name}-{epochs}.pt"
    if not path.exists():
        kept: list[Checkpoint] = []
        train(problem, data, epochs=epochs, seed=0, progress=lambda *_: None, keep=lambda _, c: kept.append(c))
        kept[-1].save(path)
    return path


def median_and_range(values: Sequence[float]) -> str:
    """Return them as a cell of a table."""
    return f"{statistics.median(values):.4g} ({min(values):.4g} to {max(values):.4g})"
