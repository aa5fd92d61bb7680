"""Figures, made from curves alone."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from latephase.study.demo import Comparison
from latephase.study.evaluation import Point

# Okabe and Ito's palette, which colour-blind readers can tell apart; line styles for print without colour.
_STYLES = {
    "sgd_constant": ("#7f7f7f", "-"),
    "sgd_tenth": ("#009e73", "--"),
    "sgd_cosine": ("#0072b2", "-."),
    "hf_equal": ("#cc79a7", (0, (1, 1))),
    "hf_large": ("#d55e00", "-"),
}
_SETTINGS: dict[Any, Any] = {
    "font.size": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "legend.frameon": False,
    "lines.linewidth": 1.8,
}


def draw_comparison(comparison: Comparison, path: Path, *, title: str) -> None:
    """Draw training loss and test accuracy over the budget, with the end of the training before it.

    Lines are means over seeds, bands reach from the lowest to the highest seed.

    Args:
        comparison: What to draw.
        title: Stands above the two panels.
        path: Where to write; its ending chooses the format.
    """
    with rc_context(_SETTINGS):
        figure = Figure(figsize=(9.0, 3.9), layout="constrained")
        loss, accuracy = figure.subplots(1, 2)
        _draw(loss, comparison, "train_loss")
        _draw(accuracy, comparison, "test_accuracy")
        loss.set(ylabel="train loss, L2 term included", xlabel="seconds of training since the checkpoint")
        accuracy.set(ylabel="test accuracy", xlabel="seconds of training since the checkpoint")
        accuracy.yaxis.set_major_formatter(PercentFormatter(xmax=1.0))
        figure.suptitle(title)
        handles, labels = loss.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
        figure.savefig(path, dpi=130)


def _draw(axes: Axes, comparison: Comparison, quantity: str) -> None:
    """Draw one quantity, an attribute of `Point`, for the training and for every strategy."""
    before = [p for p in comparison.training.curve if p.seconds >= comparison.training.seconds - comparison.budget]
    seconds, values = _arrays(before, quantity)
    axes.plot(seconds - comparison.training.seconds, values, color="#7f7f7f", linewidth=1.0)
    axes.axvline(0.0, color="#333333", linewidth=0.8)
    place: dict[str, Any] = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points", "ha": "right"}
    axes.annotate("checkpoint", (0.0, 1.0), xytext=(-4, -8), color="#333333", **place)

    times = np.linspace(0.0, comparison.budget, 200)
    for name in dict.fromkeys(run.strategy for run in comparison.runs):
        runs = [run for run in comparison.runs if run.strategy == name]
        curves = np.stack([np.interp(times, *_arrays(run.curve, quantity)) for run in runs])
        color, linestyle = _STYLES[name]
        axes.plot(times, curves.mean(axis=0), color=color, linestyle=linestyle, label=name)
        axes.fill_between(times, curves.min(axis=0), curves.max(axis=0), color=color, alpha=0.12, linewidth=0)


def _arrays(curve: Sequence[Point], quantity: str) -> tuple[np.ndarray, np.ndarray]:
    return np.array([p.seconds for p in curve]), np.array([getattr(p, quantity) for p in curve])
