"""What the terminal shows while something runs."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

Update = Callable[[float, str], None]
"""Called with the fraction done, from 0 to 1, and a remark."""

_REFRESH = 0.1  # seconds between two paintings of a bar


class Reporter:
    """Shows tasks: live bars on a terminal, a line for each finished task elsewhere, nothing when quiet."""

    def __init__(self, console: Console, *, quiet: bool) -> None:
        self._console = console
        self._quiet = quiet

    @contextmanager
    def task(self, name: str) -> Iterator[Update]:
        """Show ``name`` for as long as the block runs; it reports by calling what it is given."""
        if self._quiet:
            yield lambda fraction, remark: None
        elif self._console.is_terminal:
            with self._bar(name) as callback:
                yield callback
        else:
            last = ""

            def remember(fraction: float, remark: str) -> None:
                nonlocal last
                last = remark

            yield remember
            self._console.print(f"{name}: {last}", highlight=False)

    def say(self, text: str) -> None:
        """Write a line where there is no live bar, which would say it itself."""
        if not self._quiet and not self._console.is_terminal:
            self._console.print(text, highlight=False, soft_wrap=True)

    @contextmanager
    def _bar(self, name: str) -> Iterator[Update]:
        columns = (
            TextColumn("{task.description:<22}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[remark]}", style="dim"),
        )
        # Painted from the callback, when no clock is running, and not from a thread that would take training time.
        with Progress(*columns, console=self._console, auto_refresh=False) as bars:
            task = bars.add_task(name, total=1.0, remark="")
            painted = 0.0

            def update(fraction: float, remark: str) -> None:
                nonlocal painted
                bars.update(task, completed=fraction, remark=remark)
                if time.monotonic() - painted > _REFRESH or fraction >= 1.0:
                    bars.refresh()
                    painted = time.monotonic()

            yield update
