"""What a finish came to: a value that people can read, plot and keep."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from latephase.finishing.budget import Budget
from latephase.finishing.phase import Phase

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class FinishReport:
    """What was tried, what was decided and why, and what came of it.

    Attributes:
        budget: What might be spent.
        judged_by: What the scores are; the lower the better.
        score_before: That of the network as it was given.
        score: That of the network as it is now, the best that was seen; never worse.
        best_by: The strategy that the best state comes from; empty if it is the state as given.
        phases: In their order: which strategy was at work, for how long, why, and what came of it.
        seconds: Spent in all, also by earlier processes that this one went on from.
        gradients: Work in all, in gradients on a batch, evaluations not counted.
        remarks: What else is worth knowing.
        state: The best state, a state dict of the network.

    >>> trial = Phase("decay", True, "a trial", begin=0.0, length=0.01, end=0.01, steps=3, outcome="score 0.5")
    >>> report = FinishReport(Budget.parse("300gradients"), "objective", 1.0, 0.5, "decay", (trial,), 0.1, 3.0)
    >>> print(report)
    finish: objective 1 -> 0.5 (by decay), 0.1 s and 3 gradients of 300 gradients
        0% tried  decay              3 steps  score 0.5
    """

    budget: Budget
    judged_by: str
    score_before: float
    score: float
    best_by: str
    phases: tuple[Phase, ...]
    seconds: float
    gradients: float
    remarks: tuple[str, ...] = ()
    state: Mapping[str, Tensor] = field(default_factory=dict, repr=False, compare=False)

    @property
    def decisions(self) -> list[str]:
        """What was decided, and why, one line each."""
        return [f"{phase.candidate}: {phase.reason}" for phase in self.phases if not phase.trial]

    @property
    def seconds_by_phase(self) -> dict[str, float]:
        """Seconds that each strategy had, trials included, as far as the budget is one of seconds; else gradients."""
        spent: dict[str, float] = {}
        for phase in self.phases:
            share = (phase.end - phase.begin) * self.budget.amount
            spent[phase.candidate] = spent.get(phase.candidate, 0.0) + share
        return spent

    def __str__(self) -> str:
        by = f"by {self.best_by}" if self.best_by else "nothing was better than the network as given"
        lines = [
            f"finish: {self.judged_by} {self.score_before:.6g} -> {self.score:.6g} ({by}), "
            f"{self.seconds:.1f} s and {self.gradients:,.0f} gradients of {self.budget}"
        ]
        for phase in self.phases:
            kind = "tried " if phase.trial else "chosen"
            lines.append(f"  {phase.begin:4.0%} {kind} {phase.candidate:<13} {phase.steps:6} steps  {phase.outcome}")
            if not phase.trial:
                lines.append(f"       {phase.reason}")
        return "\n".join([*lines, *(f"  note: {remark}" for remark in self.remarks)])

    __repr__ = __str__

    def plot(self) -> Figure:
        """Return a figure of the scores over the budget, a line for each strategy.

        Raises:
            ImportError: If Matplotlib is not installed, with what installs it.
        """
        try:
            from latephase.finishing.picture import picture
        except ImportError as error:
            raise ImportError("plot needs Matplotlib: pip install 'latephase[study]'") from error
        return picture(self.phases, self.budget, self.judged_by, self.score_before, self.score)

    def to_html(self, path: str | Path | None = None) -> str:
        """Return the report as one page that needs nothing else, and write it to `path` if there is one."""
        page = _PAGE.format(title="latephase finish", text=html.escape(str(self)), figure=_svg(self.plot))
        if path is not None:
            Path(path).write_text(page, encoding="utf-8")
        return page

    def _repr_html_(self) -> str:
        return self.to_html()


def _svg(plot: Callable[[], Figure]) -> str:
    try:
        figure = plot()
    except ImportError as error:
        return f"<p>{html.escape(str(error))}</p>"
    from latephase.finishing.picture import svg

    return svg(figure)


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }}
pre {{ overflow-x: auto; background: #f4f4f4; color: #111; padding: 1rem; border-radius: .4rem; }}
svg {{ width: 100%; height: auto; background: #fff; }}
</style></head>
<body><h1>{title}</h1>{figure}<pre>{text}</pre></body></html>
"""
