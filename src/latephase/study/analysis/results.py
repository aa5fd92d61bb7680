"""All that a folder of runs holds, as tables: what figures and the report are made from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property

import pandas as pd

from latephase.study.analysis.scores import best, scores, summary
from latephase.study.runs.evaluation import Point
from latephase.study.runs.records import LateRun, Record, Training
from latephase.study.runs.store import STEP_COLUMNS, Details, Store
from latephase.study.runs.training import checkpoint_epochs


@dataclass(frozen=True)
class Results:
    """The complete runs of a folder as tables.

    Attributes:
        trainings: One row per training, indexed by its id: `problem`, `seed`, `epochs`, `seconds` (of training
            time), `steps`, `metric` (its name), `higher_is_better`, `percent`, `checkpoints` (a list of the
            seconds at which checkpoints 1, 2, … were taken), and the problem's settings `lr`, `batch_size`,
            `weight_decay`, and how many `processes` trained it together.
        runs: One row per late-phase run, indexed by its id: `training` (an id), `problem`, `checkpoint` (its
            number, from 1), `strategy`, its `family`, `seed`, `budget` (a number) and `unit` of it
            (`"seconds"` or `"gradients"`).
        curves: One row per point, with the `id` of the training or run and the fields of `evaluation.Point`. A
            run's first point is the checkpoint, at 0 steps.
        steps: One row per Hessian-free step, with the `id` of the run, its number `step` (from 1) and fields of
            `StepRecord`: `loss_before`, `loss_after` (on the evaluation batch), `damping`,
            `reduction_ratio`, `cg_iterations`, `cg_iterate`, `step_size`, `outcome`.
        failures: One row per run that failed or whose folder is damaged, with its `id`, what is known of
            `problem`, `checkpoint`, `strategy`, `seed`, and the `error`.
        machines: One row per machine that runs were made on, with what it is and the versions of the software; the
            columns `machine`, `device`, `python`, `torch`, `latephase`, `runs` (how many).

    >>> results = load_results(Store("memory://nothing-yet"))
    >>> len(results.trainings), results.best.empty
    (0, True)
    """

    trainings: pd.DataFrame
    runs: pd.DataFrame
    curves: pd.DataFrame
    steps: pd.DataFrame
    failures: pd.DataFrame
    machines: pd.DataFrame

    @cached_property
    def best(self) -> pd.DataFrame:
        """The best that every run reached, see `scores.best`."""
        return best(self.runs, self.trainings, self.curves)

    @cached_property
    def scores(self) -> pd.DataFrame:
        """The same with scores and times, see `scores.scores`."""
        return scores(self.best, self.curves)

    @cached_property
    def summary(self) -> pd.DataFrame:
        """The same over all seeds, see `scores.summary`."""
        return summary(self.scores)


_SETTINGS = ("lr", "batch_size", "weight_decay", "processes")
_TRAINING = (
    "problem", "seed", "epochs", "seconds", "steps", "metric", "higher_is_better", "percent", "checkpoints",
    *_SETTINGS,
)  # fmt: skip
_RUN = ("training", "problem", "checkpoint", "strategy", "family", "seed", "budget", "unit")
_POINT = tuple(field.name for field in fields(Point))
_FAILURE = ("id", "problem", "checkpoint", "strategy", "seed", "error")
_MACHINE = ("machine", "device", "python", "torch", "latephase", "runs")


def load_results(store: Store) -> Results:
    """Return all complete runs of a folder, with the names of those that failed or whose folder is damaged.

    >>> results = load_results(Store("memory://nothing-yet"))
    >>> len(results.runs), list(results.failures.columns)
    (0, ['id', 'problem', 'checkpoint', 'strategy', 'seed', 'error'])
    """
    statuses = {run: store.status(run) for run in store.ids()}
    complete = {run: status for run, status in statuses.items() if status.state == "complete"}
    records = {run: status.record for run, status in statuses.items()}
    curves = {run: store.curve(run).assign(id=run) for run in complete}
    trainings = {
        run: _training(status.record, status.details, curves[run])
        for run, status in complete.items()
        if isinstance(status.record, Training)
    }
    runs = {
        run: _run(status.record, status.details, str(trainings[status.record.training]["problem"]))
        for run, status in complete.items()
        if isinstance(status.record, LateRun) and status.record.training in trainings
    }
    gone = {run: status for run, status in statuses.items() if status.state in ("failed", "damaged")}
    return Results(
        trainings=_indexed(trainings, _TRAINING),
        runs=_indexed(runs, _RUN),
        curves=_stacked(list(curves.values()), ("id", *_POINT)),
        steps=_stacked([store.steps(run).assign(id=run) for run in runs], ("id", "step", *STEP_COLUMNS)),
        failures=pd.DataFrame([_failure(run, *gone[run], records) for run in gone], columns=list(_FAILURE)),
        machines=_counted([status.details["machine"] for status in complete.values()]),
    )


def _training(record: Training, details: Details, curve: pd.DataFrame) -> dict[str, object]:
    metric = details["metric"]
    steps, seconds = int(curve["steps"].iloc[-1]), curve.set_index("steps")["seconds"]
    return {
        **{name: getattr(record, name) for name in ("problem", "seed", "epochs", *_SETTINGS)},
        "seconds": float(curve["seconds"].iloc[-1]),
        "steps": steps,
        "metric": metric["name"],
        "higher_is_better": metric["higher_is_better"],
        "percent": metric["percent"],
        "checkpoints": [float(seconds[epoch * steps // record.epochs]) for epoch in checkpoint_epochs(record.epochs)],
    }


def _run(record: LateRun, details: Details, problem: str) -> dict[str, object]:
    allowance = details["allowance"]
    return {
        **{name: getattr(record, name) for name in ("training", "checkpoint", "strategy", "family", "seed")},
        "problem": problem,
        "budget": allowance["amount"],
        "unit": allowance["unit"],
    }


def _failure(
    run: str, state: str, record: Record | None, details: Details, records: Mapping[str, Record | None]
) -> dict[str, object]:
    """Return what is known of a run that failed; its problem is that of its training."""
    training = records.get(record.training) if isinstance(record, LateRun) else record
    known = {name: getattr(record, name, None) for name in ("checkpoint", "strategy", "seed")}
    return {"id": run, "problem": getattr(training, "problem", None), **known, "error": details["error"]}


def _indexed(rows: Mapping[str, Mapping[str, object]], columns: Sequence[str]) -> pd.DataFrame:
    return pd.DataFrame(list(rows.values()), index=list(rows), columns=list(columns))


def _stacked(tables: Sequence[pd.DataFrame], columns: Sequence[str]) -> pd.DataFrame:
    full = [table for table in tables if len(table)]
    return pd.concat(full, ignore_index=True)[list(columns)] if full else pd.DataFrame(columns=list(columns))


def _counted(machines: Sequence[Mapping[str, str]]) -> pd.DataFrame:
    if not machines:
        return pd.DataFrame(columns=list(_MACHINE))
    names = list(_MACHINE[:-1])
    return (
        pd.DataFrame([{**machine, "runs": 1} for machine in machines])
        .groupby(names, as_index=False, sort=False)["runs"]
        .sum()
    )
