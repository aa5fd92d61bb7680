"""Tables for the terminal, made from curves alone."""

from collections.abc import Sequence
from statistics import fmean, stdev

from rich import box
from rich.table import Table

from latephase.study.demo import Comparison


def summary(comparison: Comparison) -> Table:
    """Return the results as a table: for each strategy mean and standard deviation over its seeds."""
    runs = comparison.runs
    seeds = len({run.seed for run in runs})
    spread = f"; mean ± standard deviation over {seeds} seeds" if seeds > 1 else ""
    start = comparison.training.curve[-1]
    table = Table(box=box.SIMPLE_HEAD, caption=f"{comparison.budget:.1f} s of training time each{spread}")
    table.add_column("strategy")
    for header in ("best train loss", "best test accuracy", "steps", "seconds"):
        table.add_column(header, justify="right")
    table.add_row(
        "checkpoint", f"{start.train_loss:.5f}", f"{start.test_accuracy:.2%}", f"{start.steps}", f"{start.seconds:.1f}"
    )
    table.add_section()
    for name in dict.fromkeys(run.strategy for run in runs):
        own = [run for run in runs if run.strategy == name]
        table.add_row(
            name,
            _mean_and_deviation([run.best_train_loss for run in own], ".5f"),
            _mean_and_deviation([100 * run.best_test_accuracy for run in own], ".2f", "%"),
            f"{fmean(run.curve[-1].steps for run in own):.0f}",
            f"{fmean(run.curve[-1].seconds for run in own):.1f}",
        )
    return table


def _mean_and_deviation(values: Sequence[float], form: str, unit: str = "") -> str:
    deviation = f" ± {stdev(values):{form}}" if len(values) > 1 else ""
    return f"{fmean(values):{form}}{deviation}{unit}"
