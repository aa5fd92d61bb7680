"""What a folder of runs holds, for the terminal: how many runs are complete, and what the others are."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from rich.console import Group
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from latephase.study.numbers import NONE
from latephase.study.runs.records import LateRun, Training
from latephase.study.runs.store import Status
from latephase.study.show.tables import narrow_table
from latephase.study.strategies.order import in_order

_NOT_COMPLETE = ("missing", "failed", "damaged")
_CALLED = {"missing": "not finished"}  # it has a folder: somebody is at it, or was interrupted


def status_tables(statuses: Mapping[str, Status], checkpoints: Mapping[str, int]) -> Group:
    """Return a table for each training: how many seeds of every strategy are complete from each checkpoint.

    Below them is what failed or cannot be read, and why.

    Args:
        statuses: Of all runs, by their ids.
        checkpoints: How many checkpoints there are of each training, by its id.

    Returns:
        What rich prints.
    """
    runs: dict[str, list[tuple[LateRun, str]]] = {run: [] for run in checkpoints}
    for status in statuses.values():
        if isinstance(status.record, LateRun):
            runs.setdefault(status.record.training, []).append((status.record, status.state))
    parts: list[Padding] = []
    for training, own in runs.items():
        heading = _heading(training, statuses.get(training), checkpoints.get(training, 0))
        parts.append(Padding(Group(heading, *([_runs_table(own)] if own else [])), (0, 0, 1, 0)))
    return Group(*parts, *(fault(run, status) for run, status in statuses.items() if "error" in status.details))


def _heading(training: str, status: Status | None, checkpoints: int) -> Text:
    if status is None or not isinstance(status.record, Training):
        return Text(f"{training}: a training that is not here or cannot be read")
    state = _CALLED.get(status.state, status.state)
    number = "1 checkpoint" if checkpoints == 1 else f"{checkpoints} checkpoints"
    return Text(f"{status.record.title}: {state}, {number}", style="bold")


def _runs_table(runs: Sequence[tuple[LateRun, str]]) -> Table:
    """Return a row for each strategy and budget, and a column for each checkpoint."""
    states: defaultdict[tuple[str, str, int], Counter[str]] = defaultdict(Counter)
    for record, state in runs:
        states[record.strategy, record.budget, record.checkpoint][state] += 1
    rows = sorted({(strategy, budget) for strategy, budget, _ in states})
    numbers = sorted({number for *_, number in states})
    table = narrow_table()
    table.add_column("complete runs from checkpoint")
    for header in ("budget", *map(str, numbers)):
        table.add_column(header, justify="right")
    order = in_order(strategy for strategy, _ in rows)
    for strategy, budget in sorted(rows, key=lambda row: order.index(row[0])):
        table.add_row(escape(strategy), budget, *(_cell(states[strategy, budget, number]) for number in numbers))
    return table


def _cell(states: Counter[str]) -> str:
    """Return what there is of one strategy from one checkpoint: `2`, or `1, 1 failed`."""
    others = [f"{states[state]} {_CALLED.get(state, state)}" for state in _NOT_COMPLETE if states[state]]
    return ", ".join([str(states["complete"]), *others]) if states else NONE


def fault(run: str, status: Status) -> Text:
    """Return what went wrong with a run, by its id."""
    title = "unreadable" if status.record is None else status.record.title
    return Text(f"{run} ({title}) {status.state}: {status.details.get('error')}", style="red")
