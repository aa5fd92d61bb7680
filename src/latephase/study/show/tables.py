"""Tables for the terminal."""

from collections.abc import Iterable
from math import isfinite

import pandas as pd
import torch
from rich import box
from rich.console import Group
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

from latephase.study.analysis.results import Results
from latephase.study.analysis.scores import BASELINE
from latephase.study.numbers import NONE, SPENT, amount_text, loss_text, metric_text, score_text
from latephase.study.problems import Problem


def summary_tables(results: Results) -> Group:
    """Return a table for each checkpoint: mean and standard deviation of every strategy over its seeds."""
    if results.runs.empty:
        return Group("no complete runs")
    groups = results.summary.groupby(["problem", "checkpoint"], sort=False)
    return Group(*(Padding(_checkpoint_table(rows), (0, 0, 1, 0)) for _, rows in groups), _EXPLANATION)


_EXPLANATION = (
    "Mean ± standard deviation over seeds. Scores reach from 0, the worst run from the checkpoint, to 1, the best. "
    f"Time: what was spent until the train loss was as low as {BASELINE} gets; ∞ means never."
)


def narrow_table(title: str | None = None) -> Table:
    """Return a table without columns yet, in which many fit a small terminal."""
    return Table(
        box=box.SIMPLE_HEAD, title=title, title_justify="left", padding=(0, 1, 0, 0), show_edge=False, pad_edge=False
    )


def _checkpoint_table(rows: pd.DataFrame) -> Table:
    first = rows.iloc[0]
    budget = f"{amount_text(first['budget'], first['unit'])} {SPENT[first['unit']]}"
    title = f"{escape(first['problem'])}, checkpoint {first['checkpoint']}: {budget} each"
    table = narrow_table(title)
    table.add_column("strategy", vertical="bottom")
    for header in ("best\ntrain loss", f"best test\n{first['metric']}", "loss\nscore", "test\nscore", "time"):
        table.add_column(header, justify="right", vertical="bottom")
    table.add_column("steps", justify="right", vertical="bottom")
    table.add_column("used", justify="right", vertical="bottom")
    start = metric_text(first["start_test_metric"], percent=bool(first["percent"]))
    table.add_row("checkpoint", loss_text(first["start_train_loss"]), start)
    table.add_section()
    for _, row in rows.iterrows():
        table.add_row(*_summary_cells(row))
    gone = rows[rows["diverged"] > 0]
    if not gone.empty:
        names = [f"{row['strategy']} ({row['diverged']} of {row['runs']})" for _, row in gone.iterrows()]
        table.caption, table.caption_justify = escape(f"Diverged: {', '.join(names)}"), "left"
    return table


def _summary_cells(row: pd.Series) -> list[str]:
    unit = row["unit"]
    return [
        escape(row["strategy"]),
        _with_deviation(loss_text(row["train_loss_mean"]), row["train_loss_std"]),
        _metric_cell(row),
        score_text(row["train_score_mean"]),
        score_text(row["test_score_mean"]),
        amount_text(row["time_to_target"], unit),
        f"{row['steps']:.0f}",
        amount_text(row["spent"], unit),
    ]


def _metric_cell(row: pd.Series) -> str:
    mean, deviation = row["test_metric_mean"], row["test_metric_std"]
    if row["percent"] and isfinite(mean):
        return _with_deviation(f"{100 * mean:.2f}", 100 * deviation) + "%"
    return _with_deviation(metric_text(mean, percent=False), deviation)


def _with_deviation(mean: str, deviation: float) -> str:
    """Add a deviation with the mean's decimals; a single run has none."""
    if not isfinite(deviation):
        return mean
    decimals = len(mean.partition(".")[2])
    return f"{mean} ± " + (f"{deviation:.1g}" if "e" in mean else f"{deviation:.{decimals}f}")


def problems_table(problems: Iterable[Problem]) -> Table:
    """Return what problems there are: where they come from and how large they are."""
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("problem", no_wrap=True)
    table.add_column("source")
    for header in ("parameters", "epochs", "batch"):
        table.add_column(header, justify="right")
    for problem in problems:
        size = f"{_number_of_parameters(problem):,}"
        table.add_row(problem.name, problem.source or NONE, size, str(problem.epochs), str(problem.batch_size))
    return table


def table1(problems: Iterable[Problem]) -> Table:
    """Return the hyper-parameters of the training, as in the paper's Table 1; where it is not by SGD, by what it is."""
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("problem", no_wrap=True)
    for header in ("learning rate α", "batch size N", "epochs", "L2"):
        table.add_column(header, justify="right")
    for problem in problems:
        rate = f"{problem.lr:g}" if problem.first_phase == "sgd_constant" else problem.first_phase
        numbers = (rate, str(problem.batch_size), str(problem.epochs), f"{problem.weight_decay:g}")
        table.add_row(problem.name, *numbers)
    return table


def _number_of_parameters(problem: Problem) -> int:
    """Count without making any: a network on the device `meta` has shapes, and draws no random numbers."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in problem.build_model().parameters())
