"""What figures are put together from: panels, means over seeds with their bands, axes, legends."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from math import ceil
from typing import Any, TypeAlias

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from numpy.typing import NDArray

from latephase.strategies.style import Style
from latephase.study.show.styles import Look

Curve: TypeAlias = tuple[NDArray[Any], NDArray[Any]]
"""Two arrays of one length: where and what."""

QUARTILES = (0.25, 0.75)
EXTREMES = (0.0, 1.0)
BEFORE = "_before"  # the label of what led to the checkpoint; the underscore keeps it out of legends
DIVERGED = "diverged"  # the label of the crosses

_WIDTHS = {1: 5.4, 2: 9.0, 3: 11.0}  # inches of a figure with so many panels in a row
_HEIGHT = 2.8  # of a row
_NARROW = (3.7, 2.5)  # of one panel, on a phone
_LEGEND_ROW = 0.23
_LEGEND_LINE = 0.7  # of the line before a label, and the gaps
_LEGEND_LETTER = 0.075
_DECADE = 10.0
_MARGIN = 0.06  # of the y axis, above and below what is shown
_KNOTS = 200


@contextmanager
def panels(look: Look, rows: int, columns: int) -> Iterator[tuple[Figure, NDArray[Any]]]:
    """Provide a new figure and its panels, to be drawn on in this look.

    If the look is narrow, all panels stand below each other.

    Yields:
        The figure, and an array [rows, columns] of axes.
    """
    with rc_context(look.settings()):
        if look.narrow:
            figure = Figure(figsize=(_NARROW[0], _NARROW[1] * rows * columns), layout="constrained")
            axes = figure.subplots(rows * columns, 1, squeeze=False).reshape(rows, columns)
        else:
            figure = Figure(figsize=(_WIDTHS[columns], _HEIGHT * rows), layout="constrained")
            axes = figure.subplots(rows, columns, squeeze=False)
        for panel in axes.flat:
            # Ticks are made when the figure is saved, so what they look like is not left to the settings of now.
            look_of_ticks: dict[str, Any] = {"colors": look.quiet, "labelsize": 8.5, "grid_color": look.grid}
            panel.tick_params(which="both", length=0, grid_linewidth=0.8, **look_of_ticks)
            panel.set_axisbelow(True)
        yield figure, axes


def over_seeds(curves: Sequence[Curve], end: float, band: tuple[float, float]) -> tuple[NDArray[Any], ...]:
    """Return places from 0 to `end`, and there the mean of the curves and two quantiles of them.

    Curves are joined linearly and keep their last value: a strategy that ends early leaves the network it has. Where
    one is not finite, so is nothing of what is returned.

    Args:
        curves: One for each seed.
        end: Where all of them end at the latest.
        band: The quantiles.
    """
    knots = np.unique(np.concatenate([np.array([0.0, end]), *(np.clip(x, 0.0, end) for x, _ in curves)]))
    if len(knots) > _KNOTS:
        knots = np.linspace(0.0, end, _KNOTS)
    values = np.stack([np.interp(knots, x, np.where(np.isfinite(y), y, np.nan)) for x, y in curves])
    return knots, values.mean(axis=0), *np.quantile(values, band, axis=0)


def draw_over_seeds(
    axes: Axes, curves: Sequence[Curve], end: float, band: tuple[float, float], *, label: str, style: Style, look: Look
) -> None:
    """Draw the mean of the curves, and a band between two quantiles of them."""
    x, mean, low, high = over_seeds(curves, end, band)
    color = look.color(style)
    axes.plot(x, mean, color=color, linestyle=style.linestyle, label=label)
    axes.fill_between(x, low, high, color=color, alpha=0.14 if look.name == "light" else 0.2, linewidth=0)


def mark_ends(axes: Axes, labels: Collection[str], look: Look) -> None:
    """Put a cross where the lines with these labels end, because what they show diverges there; explain it once.

    A line that has left the panel has its cross on the edge. So the y axis must have been chosen.
    """
    cross: dict[str, Any] = {"linestyle": "none", "marker": "x", "markersize": 6.0, "markeredgewidth": 1.7}
    low, high = axes.get_ylim()
    for line in [line for line in axes.get_lines() if line.get_label() in labels]:
        x, y = (np.asarray(values, dtype=float) for values in line.get_data())
        last = np.flatnonzero(np.isfinite(y))[-1:]
        axes.plot(x[last], np.clip(y[last], low, high), **cross, color=line.get_color(), label="_", clip_on=False)
    if labels:
        axes.plot([], [], **cross, color=look.quiet, label=DIVERGED)


def frame(axes: Axes, start: float, *, higher_is_better: bool) -> None:
    """Choose the y axis so that it shows what strategies gained since the checkpoint.

    What got worse is shown as far as the gain reaches in the other direction and half as far again, and so that at
    least half of the strategies stay in the panel, those that diverge not counted: their lines end before the budget
    does. So one that fails does not press the others into a line. Of a line called `BEFORE` more is shown: four times
    the gain.

    Args:
        axes: With a labelled line for each strategy.
        start: The value at the checkpoint.
        higher_is_better: Whether the values are better the higher.
    """
    sign = 1.0 if higher_is_better else -1.0
    lines = [line for line in axes.get_lines() if len(_values([line], labelled=True))]
    if not lines:
        return
    merits = [sign * _values([line]) for line in lines]
    best = max(merit.max() for merit in merits)
    lasting = [merit for merit, line in zip(merits, lines, strict=True) if merit.size == np.size(line.get_ydata())]
    worst = float(np.median([merit.min() for merit in lasting or merits]))
    gain = best - sign * start if np.isfinite(start) else 0.0
    if gain > 0:
        worst = min(worst, sign * start - 1.5 * gain)
    worst = max(worst, min(merit.min() for merit in merits))
    before = sign * _values([line for line in axes.get_lines() if line.get_label() == BEFORE])
    if len(before) and gain > 0:
        worst = min(worst, max(before.min(), sign * start - 4 * gain))
    if worst < best:
        _limit(axes, *sorted((sign * worst, sign * best)))


def scale(axes: Axes, *sharing: Axes) -> None:
    """Choose the y axis for all that has been drawn: logarithmic if it spans more than a decade.

    Args:
        axes: Whose axis to choose.
        sharing: Others with the same y axis.
    """
    values = _values([line for panel in (axes, *sharing) for line in panel.get_lines()])
    if len(values) and values.min() < values.max():
        _limit(axes, values.min(), values.max())


def _values(lines: Sequence[Line2D], *, labelled: bool = False) -> NDArray[Any]:
    """Return all finite values of lines, or of those that a legend shows."""
    shown = [line for line in lines if not (labelled and str(line.get_label()).startswith("_"))]
    values = np.concatenate([np.empty(0), *(np.asarray(line.get_ydata(), dtype=float) for line in shown)])
    return values[np.isfinite(values)]


def _limit(axes: Axes, low: float, high: float) -> None:
    """Let the y axis reach from `low` to `high` and a little farther."""
    if low > 0 and high > _DECADE * low:
        margin = (high / low) ** _MARGIN
        axes.set_yscale("log", nonpositive="mask")
        axes.set_ylim(low / margin, high * margin)
        few = high < 10**2.5 * low
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if few else (1.0,)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(_decimal if low > 5e-4 and high < 2e4 else _power))
    else:
        margin = _MARGIN * (high - low)
        axes.set_ylim(low - margin, high + margin)


def _decimal(value: float, position: int | None = None) -> str:
    return f"{value:g}"


def _power(value: float, position: int | None = None) -> str:
    digits, exponent = f"{value:e}".split("e")
    power = rf"10^{{{int(exponent)}}}"
    return f"${power}$" if float(digits) == 1 else rf"${float(digits):g} \cdot {power}$"


def percent_axis(axes: Axes) -> None:
    """Write the y axis in percent, for values that are shares of one."""
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.6g}%"))


def integer_axis(axes: Axes) -> None:
    """Number the x axis by integers."""
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=10))


def checkpoint_axis(axes: Axes, checkpoints: Sequence[int]) -> None:
    """Number the x axis by checkpoints."""
    axes.set(xlabel="checkpoint", xlim=(min(checkpoints) - 0.5, max(checkpoints) + 0.5))
    integer_axis(axes)
    axes.grid(visible=False, axis="x")


def legend_below(figure: Figure) -> None:
    """Explain every label once, below all panels, and make the figure as much higher."""
    entries: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    longest = max((len(label) for label in entries), default=0)
    most = max(1, min(5, int(figure.get_figwidth() / (_LEGEND_LINE + _LEGEND_LETTER * longest))))
    rows = max(1, ceil(len(entries) / most))
    figure.set_figheight(figure.get_figheight() + _LEGEND_ROW * rows)
    columns = max(1, ceil(len(entries) / rows))
    figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=columns)
