"""The figures of the paper, made from `Results` alone.

Each function returns a Matplotlib figure with a row of panels for each problem (or for the one asked for), and None
where the results lack what it needs.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from latephase.strategies.hf import SAME_BATCH, model_batch
from latephase.strategies.strategy import Family
from latephase.strategies.style import Style
from latephase.study.analysis.results import Results
from latephase.study.analysis.scores import BASELINE, training_names
from latephase.study.numbers import SPENT
from latephase.study.runs.divergence import has_diverged, where_diverged
from latephase.study.runs.evaluation import Quality
from latephase.study.show.panels import (
    BEFORE,
    EXTREMES,
    QUARTILES,
    Curve,
    checkpoint_axis,
    draw_over_seeds,
    frame,
    integer_axis,
    legend_below,
    mark_ends,
    panels,
    percent_axis,
    scale,
)
from latephase.study.show.saving import save
from latephase.study.show.styles import LIGHT, Look, styles
from latephase.study.strategies.order import in_order, plain_name

_FEW_STEPS = 40
_LEAST_RATE = 5e-4  # of a run's largest learning rate
_MEASURED = tuple(field.name for field in fields(Quality))


def compared(rows: pd.DataFrame) -> set[str]:
    """Return the Hessian-free strategies among the rows that are compared with SGD: on disjoint batches."""
    names = rows["strategy"][rows["family"] == Family.HESSIAN_FREE.value]
    return {name for name in names if plain_name(name) != SAME_BATCH}


def figure1(results: Results, *, problem: str | None = None, look: Look = LIGHT) -> Figure | None:
    """Draw the relative performance of SGD as before and of Hessian-free over checkpoints, two at least."""
    names = compared(results.runs)
    if not names or BASELINE not in set(results.runs["strategy"]):
        return None
    return _relative_performance(results, {*names, BASELINE}, problem, look)


def figure5(results: Results, *, problem: str | None = None, look: Look = LIGHT) -> Figure | None:
    """Draw the relative performance of all strategies over checkpoints, two at least."""
    return _relative_performance(results, set(results.runs["strategy"]), problem, look)


def figure2(results: Results, *, problem: str | None = None, look: Look = LIGHT) -> Figure | None:
    """Draw train loss, test metric and learning rate over the budget, from the last checkpoint."""
    return _over_budget(results, ("train_loss", "test_metric", "lr"), problem, look)


def figure6(results: Results, *, problem: str | None = None, look: Look = LIGHT) -> Figure | None:
    """Draw train loss and test metric over the budget, from the last checkpoint."""
    return _over_budget(results, ("train_loss", "test_metric"), problem, look)


def figure7(results: Results, *, problem: str | None = None, look: Look = LIGHT) -> Figure | None:
    """Draw the learning rates over the budget, from the last checkpoint."""
    return _over_budget(results, ("lr",), problem, look)


def figure3(results: Results, *, problem: str | None = None, look: Look = LIGHT) -> Figure | None:
    """Draw the loss on B̄ before and after each step: where B̄ is the model batch, and where it is disjoint."""
    cases = {}
    for name, runs in _problems(results, problem).items():
        disjoint = _largest_batch(set(runs["strategy"]))
        both = runs[runs["strategy"].isin([SAME_BATCH, disjoint]) & runs.index.isin(results.steps["id"])]
        there = both.groupby("checkpoint")["strategy"].nunique()
        if (there == 2).any():
            last = there[there == 2].index.max()
            cases[name] = (disjoint, both[both["checkpoint"] == last])
    if not cases:
        return None
    with panels(look, len(cases), 2) as (figure, axes):
        for row, (name, (disjoint, runs)) in zip(axes, cases.items(), strict=True):
            for panel, strategy, kind in zip(row, (SAME_BATCH, disjoint), ("same batch", "disjoint"), strict=True):
                _draw_steps(panel, results.steps, runs.index[runs["strategy"] == strategy], look)
                panel.set(xlabel="step", ylabel="loss on B̄")
                panel.set_title(_heading(f"{kind} ({strategy})", name, cases))
                panel.set_xlim(0.5, results.steps["step"][results.steps["id"].isin(runs.index)].max() + 0.5)
                integer_axis(panel)
            row[1].sharey(row[0])
            scale(row[0], row[1])
        legend_below(figure)
    return figure


def figure4(results: Results, *, problem: str | None = None, look: Look = LIGHT) -> Figure | None:
    """Draw loss and metric of the trainings, on train and test data, with the checkpoints marked."""
    trainings = results.trainings.assign(problem=training_names(results.trainings))
    trainings = trainings[trainings.index.isin(results.curves["id"])]
    if problem is not None:
        runs = results.best
        of_runs = trainings.index.isin(runs["training"][runs["problem"] == problem])
        trainings = trainings[of_runs | (trainings["problem"] == problem)]
    names = list(dict.fromkeys(trainings["problem"]))
    if not names:
        return None
    with panels(look, len(names), 2) as (figure, axes):
        for (loss, metric), name in zip(axes, names, strict=True):
            own = trainings[trainings["problem"] == name]
            for panel, quantity in ((loss, "loss"), (metric, "metric")):
                _draw_training(panel, results.curves, own, quantity, look)
                panel.set_xlabel("seconds of training")
            loss.set_title(_heading("loss", name, names))
            scale(loss)
            metric.set_title(_heading(own["metric"].iloc[0], name, names))
            if own["percent"].iloc[0]:
                percent_axis(metric)
            else:
                scale(metric)
        legend_below(figure)
    return figure


def demo_figure(results: Results, *, look: Look = LIGHT) -> Figure | None:
    """Draw train loss and test metric over the budget from the last checkpoint, with the end of the training before it.

    Lines are means over seeds, bands reach from the lowest to the highest seed.

    Returns:
        The figure; None where there are no late-phase runs.
    """
    cases = _last_checkpoints(results, None)
    if not cases:
        return None
    with panels(look, len(cases), 2) as (figure, axes):
        for row, (name, runs) in zip(axes, cases.items(), strict=True):
            for panel, quantity in zip(row, ("train_loss", "test_metric"), strict=True):
                _draw_training_before(panel, results, runs, quantity, look)
                _draw_strategies(panel, results, runs, quantity, EXTREMES, look)
                panel.set_xlabel(f"{SPENT[_unit(runs)]} since the checkpoint")
                panel.set_xlim(-runs["budget"].max(), runs["budget"].max())
                panel.set_title(_heading(_title(quantity, runs), name, cases))
        figure.suptitle(_demo_title(cases), x=0.01, ha="left", fontsize=11.0)
        legend_below(figure)
    return figure


FIGURES: dict[str, Callable[..., Figure | None]] = {
    "figure1": figure1,
    "figure2": figure2,
    "figure3": figure3,
    "figure4": figure4,
    "figure5": figure5,
    "figure6": figure6,
    "figure7": figure7,
}


def save_all(results: Results, folder: Path, *, look: Look = LIGHT) -> list[Path]:
    """Write all figures of the paper that the results are enough for into `folder`; return the paths."""
    made = {name: draw(results, look=look) for name, draw in FIGURES.items()}
    return [path for name, figure in made.items() if figure is not None for path in save(figure, folder / name)]


def _problems(results: Results, problem: str | None) -> dict[str, pd.DataFrame]:
    """Return the runs (rows of `best`) of every problem, or of the one asked for."""
    runs = results.best
    names = list(dict.fromkeys(runs["problem"])) if problem is None else [problem]
    return {name: runs[runs["problem"] == name] for name in names if (runs["problem"] == name).any()}


def _last_checkpoints(results: Results, problem: str | None) -> dict[str, pd.DataFrame]:
    cases = _problems(results, problem)
    return {name: runs[runs["checkpoint"] == runs["checkpoint"].max()] for name, runs in cases.items()}


def _heading(text: str, problem: str, problems: Sequence[str] | Mapping[str, object]) -> str:
    """Return a panel's title; it names the problem if there are several."""
    return text if len(problems) == 1 else f"{problem}: {text}"


def _unit(runs: pd.DataFrame) -> str:
    return runs["unit"].iloc[0]


def _curve(curves: pd.DataFrame, name: str, x: str, y: str) -> Curve:
    """Return two columns of a curve; what was measured where it has diverged is NaN, which no axis has to show."""
    points = curves[curves["id"] == name]
    values = points[y].where(~where_diverged(points)) if y in _MEASURED else points[y]
    return points[x].to_numpy(dtype=float), values.to_numpy(dtype=float)


# --- Over checkpoints -------------------------------------------------------------------------------------------------


def _relative_performance(results: Results, strategies: set[str], problem: str | None, look: Look) -> Figure | None:
    if results.runs.empty:
        return None
    rows = results.summary
    rows = rows[rows["strategy"].isin(strategies)]
    names = list(dict.fromkeys(rows["problem"])) if problem is None else [problem]
    names = [name for name in names if rows[rows["problem"] == name]["checkpoint"].nunique() > 1]
    if not names:
        return None
    with panels(look, len(names), 2) as (figure, axes):
        for (loss, metric), name in zip(axes, names, strict=True):
            own = rows[rows["problem"] == name]
            _draw_scores(loss, own, "train_score", results, look)
            _draw_scores(metric, own, "test_score", results, look)
            loss.set_title(_heading("best train loss", name, names))
            metric.set_title(_heading(f"best test {own['metric'].iloc[0]}", name, names))
        legend_below(figure)
    return figure


def _draw_scores(axes: Axes, rows: pd.DataFrame, score: str, results: Results, look: Look) -> None:
    """Draw a score's mean over seeds and its quartiles, a little apart for each strategy."""
    looks = styles(results.runs["strategy"])
    names = in_order(rows["strategy"])
    for number, name in enumerate(names):
        own = rows[rows["strategy"] == name]
        style, color = looks[name], look.color(looks[name])
        x = own["checkpoint"].to_numpy(dtype=float) + (number - (len(names) - 1) / 2) * min(0.07, 0.6 / len(names))
        axes.vlines(x, own[f"{score}_q25"], own[f"{score}_q75"], color=color, linewidth=1.1)
        line: dict[str, Any] = {"linestyle": style.linestyle, "linewidth": 1.2, "marker": style.marker}
        axes.plot(x, own[f"{score}_mean"], color=color, markersize=4.5, label=name, **line)
    checkpoint_axis(axes, [int(n) for n in rows["checkpoint"]])
    axes.set(ylim=(-0.04, 1.04), ylabel="score (1 = best)")


# --- Over the budget --------------------------------------------------------------------------------------------------


def _over_budget(results: Results, quantities: Sequence[str], problem: str | None, look: Look) -> Figure | None:
    cases = _last_checkpoints(results, problem)
    if list(quantities) == ["lr"]:
        cases = {name: runs for name, runs in cases.items() if _with_learning_rate(results, runs)}
    if not cases:
        return None
    with panels(look, len(cases), len(quantities)) as (figure, axes):
        for row, (name, runs) in zip(axes, cases.items(), strict=True):
            for panel, quantity in zip(row, quantities, strict=True):
                _draw_strategies(panel, results, runs, quantity, QUARTILES, look)
                panel.set_title(_heading(_title(quantity, runs), name, cases))
                panel.set(xlabel=f"{_unit(runs)} since the checkpoint", xlim=(0.0, runs["budget"].max()))
        legend_below(figure)
    return figure


def _title(quantity: str, runs: pd.DataFrame) -> str:
    return {"train_loss": "train loss", "lr": "learning rate"}.get(quantity) or f"test {runs['metric'].iloc[0]}"


def _draw_strategies(
    axes: Axes, results: Results, runs: pd.DataFrame, quantity: str, band: tuple[float, float], look: Look
) -> None:
    """Draw a column of the curves for every strategy, and choose the y axis."""
    looks = styles(results.runs["strategy"])
    for name in in_order(runs["strategy"]):
        own = runs.index[runs["strategy"] == name]
        curves = [_curve(results.curves, run, _unit(runs), quantity) for run in own]
        if quantity == "lr":
            _draw_learning_rates(axes, curves, name, looks[name], look)
        else:
            draw_over_seeds(axes, curves, runs["budget"].max(), band, label=name, style=looks[name], look=look)
    if quantity == "lr":
        scale(axes)
        return
    if quantity == "train_loss":
        frame(axes, runs["start_train_loss"].mean(), higher_is_better=False)
    else:
        frame(axes, runs["start_test_metric"].mean(), higher_is_better=bool(runs["higher_is_better"].iloc[0]))
        if runs["percent"].iloc[0]:
            percent_axis(axes)
    mark_ends(axes, set(runs["strategy"][runs["diverged"]]), look)


def _draw_learning_rates(axes: Axes, curves: Sequence[Curve], name: str, style: Style, look: Look) -> None:
    """Draw a line for each seed: schedules that react fall at other times with other seeds, which a mean would blur."""
    # Neither where there is none, nor the last part of a cosine's way to zero, which no logarithmic axis shows.
    there = [y > _LEAST_RATE * np.nanmax(y, initial=0.0) for _, y in curves]
    for number, ((x, y), shown) in enumerate(zip(curves, there, strict=True)):
        if shown.any():
            label = "_" if number else name
            color = look.color(style)
            axes.plot(x[shown], y[shown], color=color, linestyle=style.linestyle, linewidth=1.3, label=label)


def _with_learning_rate(results: Results, runs: pd.DataFrame) -> bool:
    return bool((results.curves["lr"][results.curves["id"].isin(runs.index)] > 0).any())


# --- Steps, trainings, the demo ---------------------------------------------------------------------------------------


def _largest_batch(strategies: set[str]) -> str | None:
    sizes = {size: name for name in strategies if name == plain_name(name) and (size := model_batch(name))}
    return sizes[max(sizes)] if sizes else None


def _draw_steps(axes: Axes, steps: pd.DataFrame, runs: pd.Index, look: Look) -> None:
    """Draw the loss on B̄ before and after every step, a line for each run, with dots where steps are few."""
    few = steps["step"][steps["id"].isin(runs)].max() <= _FEW_STEPS
    for number, run in enumerate(runs):
        own = steps[steps["id"] == run]
        least = float(own["loss_before"].abs().min())
        kinds = (
            ("before the step", "loss_before", look.train, (4.0, 1.2)),
            ("after the step", "loss_after", look.test, ()),
        )
        for label, column, color, dashes in kinds:
            style = (0, dashes) if dashes else "-"
            shown = "_" if number else label
            line: dict[str, Any] = {
                "linestyle": style,
                "linewidth": 1.0,
                "marker": "o" if few else "",
                "markersize": 2.5,
            }
            gone = [has_diverged(loss, least) for loss in own[column]]
            axes.plot(own["step"], own[column].mask(gone), color=color, alpha=0.8, label=shown, **line)


def _draw_training(axes: Axes, curves: pd.DataFrame, trainings: pd.DataFrame, quantity: str, look: Look) -> None:
    mark: dict[str, Any] = {"linestyle": "none", "marker": "o", "markersize": 4.5}
    for number, (name, checkpoints) in enumerate(trainings["checkpoints"].items()):
        for split, color, style in (("train", look.train, "-"), ("test", look.test, (0, (4.0, 1.2)))):
            x, y = _curve(curves, str(name), "seconds", f"{split}_{quantity}")
            shown = "_" if number else split
            axes.plot(x, y, color=color, linestyle=style, linewidth=1.4, label=shown)
            marks = np.interp(np.asarray(checkpoints, dtype=float), x, y)
            axes.plot(checkpoints, marks, **mark, color=color, label="_")
    axes.plot([], [], **mark, color=look.quiet, label="checkpoint")


def _draw_training_before(axes: Axes, results: Results, runs: pd.DataFrame, quantity: str, look: Look) -> None:
    """Draw the end of the first training: as much before the checkpoint as the budget is after it."""
    training = results.trainings.loc[runs["training"].iloc[0]]
    seconds = training["checkpoints"][int(runs["checkpoint"].iloc[0]) - 1]
    unit, budget = _unit(runs), runs["budget"].max()
    x, y = _curve(results.curves, str(training.name), unit, quantity)
    at = np.interp(seconds, _curve(results.curves, str(training.name), "seconds", quantity)[0], x)
    shown = (x >= at - budget) & (x <= at)
    axes.plot(x[shown] - at, y[shown], color=look.quiet, linewidth=1.0, label=BEFORE)
    axes.axvline(0.0, color=look.text, linewidth=0.8)
    place: dict[str, Any] = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points", "ha": "right"}
    ground = {"facecolor": look.paper, "edgecolor": "none", "pad": 1.0}
    axes.annotate("checkpoint", (0.0, 1.0), xytext=(-4, -8), color=look.quiet, fontsize=8.5, bbox=ground, **place)


def _demo_title(cases: dict[str, pd.DataFrame]) -> str:
    (name, runs), *others = cases.items()
    count = runs["strategy"].nunique()
    ways = f"{count} way{'s' if count > 1 else ''} to spend the same {_unit(runs)} after SGD"
    return ways if others else f"{name}: {ways}"
