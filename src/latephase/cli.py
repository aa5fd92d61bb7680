"""``latephase …`` on the command line."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from latephase.study.data import DataError
from latephase.study.demo import compare
from latephase.study.figures import draw_comparison
from latephase.study.problems import PROBLEMS, find_problem
from latephase.study.progress import Reporter
from latephase.study.tables import summary

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.callback()
def main() -> None:
    """Finish the training of neural networks."""


@app.command()
def demo(
    problem: Annotated[str, typer.Option(help=f"What to train: {' or '.join(PROBLEMS)}.")] = "digits_cnn",
    out: Annotated[Path, typer.Option(help="Folder for the figure and the checkpoint.")] = Path("latephase-demo"),
    data_dir: Annotated[Path | None, typer.Option(help="Folder with Fashion-MNIST's four IDX files.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the training, and of each strategy's first run.")] = 0,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each strategy, with consecutive seeds.")] = 3,
    epochs: Annotated[int | None, typer.Option(min=1, help="Epochs of training; by default the problem's.")] = None,
    budget: Annotated[
        float | None, typer.Option(min=0.01, help="Seconds of each run; by default 10% of the training time.")
    ] = None,
    device: Annotated[str, typer.Option(help="Where to train: cpu, cuda, …")] = "cpu",
    quiet: Annotated[bool, typer.Option("--quiet", help="Show no progress.")] = False,
) -> None:
    """Train with SGD; then, from the same checkpoint and for the same time, finish in several ways.

    Prints a table, and draws train loss and test accuracy over the budget.
    """
    with _blaming("--problem"):
        chosen = find_problem(problem)
    with _blaming("--out"):
        out.mkdir(parents=True, exist_ok=True)
        figure = out / "demo.png"
        figure.touch()  # better refused now than after the training
    with _blaming("--data-dir"):
        data = chosen.load_data(data_dir)
    with _blaming("--device"):
        data = data.to(torch.device(device))
    if chosen.cpu_threads is not None:
        torch.set_num_threads(chosen.cpu_threads)

    console = Console()
    comparison = compare(
        chosen,
        data,
        out,
        epochs=chosen.epochs if epochs is None else epochs,
        budget=budget,
        seeds=range(seed, seed + seeds),
        reporter=Reporter(console, quiet=quiet),
    )
    draw_comparison(comparison, figure, title=f"{chosen.name}: five ways to spend the same seconds after SGD")
    console.print(summary(comparison))
    console.print(f"figure: {figure}", soft_wrap=True, highlight=False)


@contextmanager
def _blaming(option: str) -> Iterator[None]:
    """Turn what goes wrong in the block into a message about ``option``."""
    try:
        yield
    except (ValueError, OSError, RuntimeError, DataError) as error:
        raise typer.BadParameter(str(error), param_hint=option) from None
