"""What the terminal shows while something runs."""

import io

import pytest
from rich.console import Console

from latephase.study.runs.progress import Reporter


@pytest.mark.parametrize(
    ("terminal", "quiet", "shown"), [(True, False, "100%"), (False, False, "a task: loss 0.5\n"), (True, True, "")]
)
def test_progress_is_a_bar_on_a_terminal_and_a_line_elsewhere(terminal, quiet, shown):
    console = Console(file=io.StringIO(), force_terminal=terminal, width=100)
    with Reporter(console, quiet=quiet).task("a task") as progress:
        progress(0.5, "loss 0.9")
        progress(1.0, "loss 0.5")
    text = console.file.getvalue()
    assert (shown in text) if shown else (text == "")
    assert ("\x1b[" in text) == (terminal and not quiet)
