"""All that a folder of runs holds, as tables: what scores, figures and the report are made from."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import pandas as pd

from latephase.study.evaluation import Point
from latephase.study.store import STEP_COLUMNS, Store
from latephase.study.training import checkpoint_epochs


@dataclass(frozen=True)
class Results:
    """The complete runs of a folder as tables.

    Attributes:
        trainings: One row per training, indexed by its id: ``problem``, ``seed``, ``epochs``, ``seconds`` (of training
            time), ``steps``, ``metric`` (its name), ``higher_is_better``, ``percent``, ``checkpoints`` (a list of the
            seconds at which checkpoints 1, 2, … were taken), and the problem's settings ``lr``, ``batch_size``,
            ``weight_decay``.
        runs: One row per late-phase run, indexed by its id: ``training`` (an id), ``problem``, ``checkpoint`` (its
            number, from 1), ``strategy``, ``seed``, ``budget`` (a number) and ``unit`` of it (``"seconds"`` or
            ``"gradients"``).
        curves: One row per point, with the ``id`` of the training or run and the fields of `evaluation.Point`. A
            run's first point is the checkpoint, at 0 steps.
        steps: One row per Hessian-free step, with the ``id`` of the run, its number ``step`` (from 1) and fields of
            `StepRecord`: ``loss_before``, ``loss_after`` (on the evaluation batch), ``damping``,
            ``reduction_ratio``, ``cg_iterations``, ``cg_iterate``, ``step_size``, ``outcome``.
        failures: One row per run that failed or whose folder is damaged, with its ``id``, what is known of
            ``problem``, ``checkpoint``, ``strategy``, ``seed``, and the ``error``.
        machines: One row per machine that runs were made on, with what it is and the versions of the software; the
            columns ``machine``, ``device``, ``python``, ``torch``, ``latephase``, ``runs`` (how many).
    """

    trainings: pd.DataFrame
    runs: pd.DataFrame
    curves: pd.DataFrame
    steps: pd.DataFrame
    failures: pd.DataFrame
    machines: pd.DataFrame


_TRAINING = (
    "problem", "seed", "epochs", "seconds", "steps", "metric", "higher_is_better", "percent", "checkpoints",
    "lr", "batch_size", "weight_decay",
)  # fmt: skip
_RUN = ("training", "problem", "checkpoint", "strategy", "seed", "budget", "unit")
_POINT = tuple(field.name for field in fields(Point))
_FAILURE = ("id", "problem", "checkpoint", "strategy", "seed", "error")
_MACHINE = ("machine", "device", "python", "torch", "latephase", "runs")


def load_results(store: Store) -> Results:
    """Read all complete runs of a folder, and name those that failed or whose folder is damaged."""
    trainings: dict[str, dict[str, Any]] = {}
    runs: dict[str, dict[str, Any]] = {}
    curves, steps, failures, machines = [], [], [], []
    statuses = {run: store.status(run) for run in store.ids()}
    for run, (state, config, details) in statuses.items():
        if state == "complete":
            machines.append({**details["machine"], "runs": 1})
            curves.append(store.curve(run).assign(id=run))
        if state == "complete" and config["kind"] == "training":
            trainings[run] = _training(config, details, curves[-1])
    for run, (state, config, details) in statuses.items():
        training = statuses[config["training"]].config if config.get("training") in statuses else config
        problem = training.get("problem", {}).get("name")
        if state == "complete" and config.get("training") in trainings:
            runs[run] = _run(config, details, problem)
            steps.append(store.steps(run).assign(id=run))
        elif state in ("failed", "damaged"):
            strategy = config.get("strategy", {}).get("name")
            known = (run, problem, config.get("checkpoint"), strategy, config.get("seed"), details["error"])
            failures.append(dict(zip(_FAILURE, known, strict=True)))
    return Results(
        trainings=_indexed(trainings, _TRAINING),
        runs=_indexed(runs, _RUN),
        curves=_stacked(curves, ("id", *_POINT)),
        steps=_stacked(steps, ("id", "step", *STEP_COLUMNS)),
        failures=pd.DataFrame(failures, columns=list(_FAILURE)),
        machines=_counted(machines),
    )


def _training(config: dict[str, Any], details: dict[str, Any], curve: pd.DataFrame) -> dict[str, Any]:
    problem, metric = config["problem"], details["metric"]
    steps, seconds = int(curve["steps"].iloc[-1]), curve.set_index("steps")["seconds"]
    return {
        **{name: problem[name] for name in ("epochs", "lr", "batch_size", "weight_decay")},
        "problem": problem["name"],
        "seed": config["seed"],
        "seconds": float(curve["seconds"].iloc[-1]),
        "steps": steps,
        "metric": metric["name"],
        "higher_is_better": metric["higher_is_better"],
        "percent": metric["percent"],
        "checkpoints": [
            float(seconds[epoch * steps // problem["epochs"]]) for epoch in checkpoint_epochs(problem["epochs"])
        ],
    }


def _run(config: dict[str, Any], details: dict[str, Any], problem: str) -> dict[str, Any]:
    allowance = details["allowance"]
    return {
        **{name: config[name] for name in ("training", "checkpoint", "seed")},
        "problem": problem,
        "strategy": config["strategy"]["name"],
        "budget": allowance["amount"],
        "unit": allowance["unit"],
    }


def _indexed(rows: dict[str, dict[str, Any]], columns: Sequence[str]) -> pd.DataFrame:
    return pd.DataFrame(list(rows.values()), index=list(rows), columns=list(columns))


def _stacked(tables: Sequence[pd.DataFrame], columns: Sequence[str]) -> pd.DataFrame:
    full = [table for table in tables if len(table)]
    return pd.concat(full, ignore_index=True)[list(columns)] if full else pd.DataFrame(columns=list(columns))


def _counted(machines: Sequence[dict[str, Any]]) -> pd.DataFrame:
    if not machines:
        return pd.DataFrame(columns=list(_MACHINE))
    names = list(_MACHINE[:-1])
    return pd.DataFrame(machines).groupby(names, as_index=False, sort=False)["runs"].sum()
