"""The figure of a finish."""

from __future__ import annotations

import io
from collections.abc import Sequence

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from latephase.finishing.budget import Budget
from latephase.finishing.phase import Phase

COLOURS = {"decay": "#0072b2", "averaging": "#857600", "hessian-free": "#d55e00", "l-bfgs": "#00946c"}


def picture(phases: Sequence[Phase], budget: Budget, judged_by: str, before: float, best: float) -> Figure:
    """Return the scores over the budget: a line for each time that a strategy was at work, trials thin."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    named: set[str] = set()
    for phase in phases:
        points = [point for point in phase.points if point.score == point.score]
        if not points:
            continue
        label = None if phase.candidate in named else phase.candidate
        named.add(phase.candidate)
        width = 1.0 if phase.trial else 2.2
        shares, scores = [point.share for point in points], [point.score for point in points]
        colour = COLOURS.get(phase.candidate, "#6b6b6b")
        axes.plot(shares, scores, color=colour, marker="o", markersize=3, label=label, linewidth=width)
    axes.axhline(before, color="#6b6b6b", linewidth=1, linestyle=":", label="as given")
    axes.axhline(best, color="black", linewidth=1, linestyle="--", label="best")
    every = [point.score for phase in phases for point in phase.points] + [before]
    if min(every) > 0 and max(every) > 10 * min(every):
        axes.set_yscale("log")
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set(xlabel=f"share of the budget ({budget})", ylabel=judged_by, xlim=(0, 1))
    axes.grid(color="#dddddd", linewidth=0.5)
    axes.legend(frameon=False)
    return figure


def svg(figure: Figure) -> str:
    """Return a figure as an element of a page, the same text for the same figure."""
    buffer = io.StringIO()
    with rc_context({"svg.hashsalt": "latephase"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
