"""How good each run was: its best values within the budget, scores from 0 to 1, and the time to a target."""

import numpy as np
import pandas as pd

from latephase.strategies.first_order import SGD_CONSTANT
from latephase.study.numbers import amount_text
from latephase.study.runs.divergence import where_diverged
from latephase.study.strategies.order import in_order

BASELINE = SGD_CONSTANT.name

# Runs are compared with those that start from the same checkpoint of the same training, under the same budget.
_COMPARABLE = ["training", "problem", "checkpoint"]
_OF_THE_METRIC = ["metric", "higher_is_better", "percent"]
_MEANS = ("budget", "start_train_loss", "start_test_metric", "steps", "spent")
_SETTINGS = ("epochs", "lr", "batch_size", "weight_decay", "processes")
_SHORT = 6  # characters of an id
_ROUNDING = 1 + 1e-9


def best(runs: pd.DataFrame, trainings: pd.DataFrame, curves: pd.DataFrame) -> pd.DataFrame:
    """Return one row per run, indexed by its id, with the best it reached within its budget.

    The checkpoint itself counts: a run that only made things worse ends where it began. Values that are not finite do
    not count, nor does anything measured where a run has diverged. A run without any other gets the worst: ∞, or −∞
    for a metric that is better the higher.

    Args:
        runs: See `Results`.
        trainings: See there.
        curves: See there.

    Returns:
        The columns of `Results.runs`; `metric`, `higher_is_better` and `percent` of its training;
        `start_train_loss` and `start_test_metric`, at the checkpoint; `best_train_loss` and
        `best_test_metric`; `steps` and `spent`, of the budget, at the end; `diverged`, whether it has.
        `problem` tells settings and budget too where a folder holds several of them, so that only what is alike is
        compared.
    """
    runs = _told_apart(runs, training_names(trainings))
    runs = runs.join(trainings[_OF_THE_METRIC], on="training", how="inner")
    points = _points(curves, runs)
    points = points[points["spent"] <= points["budget"] * _ROUNDING]
    merits = points.assign(loss=-_finite(points["train_loss"]), metric=_finite(points["test_metric"]))
    merits["metric"] *= points["id"].map(_sign(runs)).astype(float)
    highest = merits.groupby("id")[["loss", "metric"]].max().reindex(runs.index).fillna(-np.inf)
    first = points.drop_duplicates("id").set_index("id")[["train_loss", "test_metric"]].reindex(runs.index)
    last = points.drop_duplicates("id", keep="last").set_index("id")[["steps", "spent"]].reindex(runs.index)
    return runs.assign(
        start_train_loss=first["train_loss"],
        start_test_metric=first["test_metric"],
        best_train_loss=-highest["loss"],
        best_test_metric=highest["metric"] * _sign(runs),
        steps=last["steps"],
        spent=last["spent"],
        diverged=runs.index.isin(points["id"][points["diverged"]]),
    )


def scores(table: pd.DataFrame, curves: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of `best` with scores and the time to the target.

    Args:
        table: What `best` returned.
        curves: See `Results`.

    Returns:
        In addition, `train_score` and `test_score`: the best train loss and the best test metric, mapped linearly
        to [0, 1] over all runs from the same checkpoint, 1 being the best. If all are equal, all have 1; what is not
        finite has 0. `target`: what going on as before reaches, which is the median over seeds of the best train
        loss of `BASELINE` from there (of two in the middle the higher, so that half of the seeds reach it); NaN without
        such runs. `time_to_target`: what of the budget was spent at the first point of the curve with a train loss
        at most as high; ∞ for never.
    """
    groups = [table[name] for name in _COMPARABLE]
    baseline = table[table["strategy"] == BASELINE].groupby(_COMPARABLE)["best_train_loss"]
    target = baseline.quantile(0.5, interpolation="higher")
    table = table.assign(
        train_score=_relative(-table["best_train_loss"], groups),
        test_score=_relative(table["best_test_metric"] * _sign(table), groups),
    )
    table = table.join(target.rename("target"), on=_COMPARABLE)
    return table.assign(time_to_target=_first_time_at(table["target"], _points(curves, table)))


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Return one row per problem, checkpoint and strategy, over all its seeds (and trainings, if there are several).

    Args:
        table: What `scores` returned.

    Returns:
        `problem`, `checkpoint`, `strategy`, `family`; `runs`, their number, and `diverged`, how many
        of them have; `unit`, `metric`, `higher_is_better`, `percent`; the means of `budget`,
        `start_train_loss`, `start_test_metric`, `steps` and `spent`; for `train_loss` and `test_metric`
        (the best of each run), `train_score` and `test_score` in turn `…_mean`, `…_std` (NaN for a single run),
        `…_q25`, `…_median`, `…_q75`; the medians of `target` and `time_to_target`. No columns if there are no
        runs.
    """
    order = in_order(table["strategy"])
    rows = [
        {"problem": problem, "checkpoint": checkpoint, "strategy": strategy, **_over_seeds(group)}
        for (problem, checkpoint, strategy), group in table.groupby(["problem", "checkpoint", "strategy"], sort=False)
    ]
    rows.sort(key=lambda row: (row["problem"], row["checkpoint"], order.index(row["strategy"])))
    return pd.DataFrame(rows)


def training_names(trainings: pd.DataFrame) -> pd.Series:
    """Return the trainings' problems, with the settings in which trainings of one problem differ.

    What differs in nothing but the seed has one name. Trainings that also have the seed in common (but, say, not the
    device) differ by the beginning of their ids.
    """
    names = trainings["problem"].astype(str).copy()
    for problem, group in trainings.groupby("problem"):
        differing = [setting for setting in _SETTINGS if group[setting].nunique() > 1]
        for training, row in group.iterrows():
            told = [f"{setting} {row[setting]:g}" for setting in differing]
            alike = group[(group[[*differing, "seed"]] == row[[*differing, "seed"]]).all(axis=1)]
            told += [str(training)[:_SHORT]] if len(alike) > 1 else []
            names[training] = f"{problem} ({', '.join(told)})" if told else problem
    return names


def _told_apart(runs: pd.DataFrame, trainings: pd.Series) -> pd.DataFrame:
    """Return the runs with their training's name, and with the budget where one training has runs of several."""
    several = runs.groupby("training")["budget"].transform("nunique") > 1
    several |= runs.groupby("training")["unit"].transform("nunique") > 1
    return runs.assign(
        problem=[
            f"{trainings[training]}, {amount_text(amount, unit)} {unit}" if apart else trainings[training]
            for training, amount, unit, apart in zip(
                runs["training"], runs["budget"], runs["unit"], several, strict=True
            )
        ]
    )


def _points(curves: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """Return the points of the runs' curves, with the budget and how much of it was `spent` at each.

    Whether a run has `diverged` there is told too. If so, what was measured is NaN.
    """
    points = curves.join(runs[["budget", "unit"]], on="id", how="inner")
    diverged = where_diverged(points)
    return points.assign(
        spent=points["seconds"].where(points["unit"] == "seconds", points["gradients"]),
        diverged=diverged,
        train_loss=points["train_loss"].where(~diverged),
        test_metric=points["test_metric"].where(~diverged),
    )


def _sign(table: pd.DataFrame) -> pd.Series:
    """Return 1 where the metric is better the higher, and −1 elsewhere."""
    return pd.Series(np.where(table["higher_is_better"].astype(bool), 1.0, -1.0), index=table.index)


def _finite(values: pd.Series) -> pd.Series:
    """Return the values with NaN, which pandas passes over, for all that is not finite."""
    return values.astype(float).where(np.isfinite(values.astype(float)))


def _relative(merits: pd.Series, groups: list[pd.Series]) -> pd.Series:
    finite = _finite(merits)
    lowest, highest = finite.groupby(groups).transform("min"), finite.groupby(groups).transform("max")
    relative = ((finite - lowest) / (highest - lowest)).where(highest > lowest, 1.0)
    return relative.where(finite.notna(), 0.0)


def _first_time_at(targets: pd.Series, points: pd.DataFrame) -> pd.Series:
    reached = points[_finite(points["train_loss"]) <= points["id"].map(targets).astype(float)]
    times = reached.groupby("id")["spent"].min().reindex(targets.index)
    return times.fillna(np.inf).where(targets.notna())


def _over_seeds(group: pd.DataFrame) -> dict[str, object]:
    same = {name: group[name].iloc[0] for name in ("family", "unit", *_OF_THE_METRIC)}
    means = {name: float(group[name].mean()) for name in _MEANS}
    row: dict[str, object] = {"runs": len(group), "diverged": int(group["diverged"].sum()), **same, **means}
    for name, column in (("train_loss", "best_train_loss"), ("test_metric", "best_test_metric")):
        row |= _spread(name, group[column])
    for name in ("train_score", "test_score"):
        row |= _spread(name, group[name])
    return row | {name: _quantile(group[name], 0.5) for name in ("target", "time_to_target")}


def _spread(name: str, values: pd.Series) -> dict[str, float]:
    finite = bool(np.isfinite(values).all())
    quartiles = {f"{name}_{part}": _quantile(values, q) for part, q in (("q25", 0.25), ("median", 0.5), ("q75", 0.75))}
    deviation = float(values.std()) if finite else float("nan")
    return {f"{name}_mean": float(values.mean()), f"{name}_std": deviation, **quartiles}


def _quantile(values: pd.Series, share: float) -> float:
    """Return the quantile, interpolated linearly. Unlike NumPy's, it is also right between infinite values."""
    ordered = np.sort(values.to_numpy(dtype=float))  # NaN, if there is any, comes last
    position = share * (len(ordered) - 1)
    lower, upper = ordered[int(np.floor(position))], ordered[int(np.ceil(position))]
    return float(lower if lower == upper else lower * (1 - position % 1) + upper * (position % 1))
