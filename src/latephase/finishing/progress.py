"""What a finish is doing, on a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Show(Protocol):
    """Shows how much of the budget is gone, and what is being done with it."""

    def __call__(self, share: float, remark: str) -> None:
        """Show it."""


@contextmanager
def bar(shown: bool) -> Iterator[Show]:
    """Show a progress bar while the block lasts; nothing where it is not wanted or `rich` is not installed."""
    try:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
    except ImportError:
        shown = False
    if not shown:
        yield lambda share, remark: None
        return
    columns = TextColumn("finish"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"), TimeElapsedColumn()
    with Progress(*columns, TextColumn("{task.description}"), console=Console(stderr=True)) as progress:
        task = progress.add_task("", total=1.0)
        yield lambda share, remark: progress.update(task, completed=min(share, 1.0), description=remark)
