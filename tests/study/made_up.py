"""Made-up results, plausible and always the same: two problems, three checkpoints, eight strategies, three seeds."""

from dataclasses import replace

import numpy as np
import pandas as pd

from latephase.study.analysis.results import Results

# How far below the checkpoint's the train loss ends, as a share, from checkpoints 1, 2 and 3; and what is left of the
# way after the whole budget if it is exponential.
STRATEGIES = {
    "sgd_constant": (0.50, 0.18, 0.06),
    "sgd_tenth": (0.30, 0.24, 0.22),
    "sgd_cosine": (0.46, 0.34, 0.33),
    "sgd_plateau": (0.45, 0.30, 0.27),
    "hf_m256": (0.10, 0.10, 0.09),
    "hf_m6144": (0.20, 0.22, 0.29),
    "hf_same_batch": (0.05, -0.20, -0.80),
    "adamw(lr=0.001)": (0.40, 0.26, 0.20),
}
PROBLEMS = {
    "digits_cnn": {
        "metric": "accuracy",
        "higher_is_better": True,
        "percent": True,
        "lr": 0.05,
        "batch_size": 32,
        "weight_decay": 5e-4,
        "processes": 1,
        "epochs": 30,
        "unit": "seconds",
        "budget": 5.4,
    },
    "poisson_pinn": {
        "metric": "relative error",
        "higher_is_better": False,
        "percent": False,
        "lr": 0.001,
        "batch_size": 1000,
        "weight_decay": 0.0,
        "processes": 1,
        "epochs": 9000,
        "unit": "gradients",
        "budget": 900.0,
    },
}
POINT = ["id", "steps", "seconds", "gradients", "lr", "train_loss", "train_metric", "test_loss", "test_metric"]


def results(checkpoints=3, seeds=3, strategies=tuple(STRATEGIES), problems=tuple(PROBLEMS)):
    """Return results with so much in them."""
    draw = np.random.default_rng(0)
    trainings, runs, curves, steps = [], [], [], []
    for problem in problems:
        known = PROBLEMS[problem]
        name = f"{problem}-0"
        curves += training_curve(name, known, draw)
        taken = [54.0 * number / checkpoints for number in range(1, checkpoints + 1)]
        settings = {key: known[key] for key in known if key not in ("unit", "budget")}
        row = {"problem": problem, "seed": 0, "seconds": 54.0, "steps": known["epochs"] * 40, "checkpoints": taken}
        trainings.append({"id": name, **row, **settings})
        for number in range(1, checkpoints + 1):
            for strategy in strategies:
                for seed in range(seeds):
                    run = f"{name}-c{number}-{strategy}-{seed}"
                    row = {"training": name, "problem": problem, "checkpoint": number, "strategy": strategy}
                    row["family"] = family_of(strategy)
                    runs.append({"id": run, **row, "seed": seed, "budget": known["budget"], "unit": known["unit"]})
                    points = run_curve(run, known, number / checkpoints, strategy, draw)
                    curves += points
                    if strategy.startswith("hf_"):
                        steps += steps_of(run, points, strategy, draw)
    return Results(
        trainings=pd.DataFrame(trainings).set_index("id"),
        runs=pd.DataFrame(runs).set_index("id"),
        curves=pd.DataFrame(curves, columns=POINT),
        steps=pd.DataFrame(steps),
        failures=failures(),
        machines=machines(len(runs)),
    )


def family_of(strategy):
    if strategy.startswith("hf_"):
        return "Hessian-free"
    return {"lbfgs": "quasi-Newton", "swa": "averaging"}.get(strategy, "first order")


def without(made, *, runs=True, steps=False):
    """Return the results without their runs, or without their steps."""
    kept = made.runs.iloc[:0] if runs else made.runs
    trainings = made.curves["id"].isin(made.trainings.index)
    return Results(
        trainings=made.trainings,
        runs=kept,
        curves=made.curves[trainings] if runs else made.curves,
        steps=made.steps.iloc[:0] if steps or runs else made.steps,
        failures=made.failures.iloc[:0],
        machines=made.machines,
    )


def diverged(made, strategies, loss=1e298):
    """Return the results with runs of these strategies that rise a thousandfold, diverge in the middle and end."""
    curves = made.curves.copy()
    of_them = curves["id"].isin(made.runs.index[made.runs["strategy"].isin(strategies)])
    place = curves.groupby("id").cumcount()
    curves.loc[of_them & place.between(8, 9), ["train_loss", "test_loss"]] *= 1000
    curves.loc[of_them & (place == 10), ["train_loss", "test_loss"]] = loss
    curves.loc[of_them & (place == 10), ["train_metric", "test_metric"]] = 0.1
    return replace(made, curves=curves[~(of_them & (place > 10))])


def loss_at(seconds, known):
    """The loss of the training, without noise."""
    return (2.3 if known["percent"] else 8.0) / (1 + (0.6 if known["percent"] else 40.0) * seconds)


def quality(loss, known, draw):
    """Train loss and what goes with it."""
    noisy = loss * (1 + 0.01 * draw.standard_normal())
    if known["percent"]:
        metric = 1 - 0.25 * min(noisy, 2.3) ** 0.75
        return noisy, min(metric + 0.005, 1.0), 1.15 * noisy + 0.02, metric - 0.002 * draw.random()
    return noisy, 0.06 * noisy**0.5, 1.2 * noisy, 0.07 * noisy**0.5


def training_curve(name, known, draw):
    rate = 16.0 if known["unit"] == "gradients" else 300.0
    for epoch in range(known["epochs"] // (1 if known["percent"] else 300) + 1):
        seconds = 54.0 * epoch / 30
        row = (name, round(seconds * rate), seconds, seconds * rate, known["lr"])
        yield dict(zip(POINT, (*row, *quality(loss_at(seconds, known), known, draw)), strict=True))


def run_curve(run, known, trained, strategy, draw):
    """21 points, the loss falling exponentially to where the strategy ends; `trained` is a share of the training."""
    start = loss_at(54.0 * trained, known)
    gains = STRATEGIES.get(strategy, (0.2, 0.2, 0.2))
    gain = np.interp(trained, (1 / 3, 2 / 3, 1), gains) * (1 + 0.08 * draw.standard_normal())
    points = []
    for i in range(21):
        spent = i / 20
        shape = spent if strategy == "sgd_cosine" else 1 - np.exp(-4 * spent)
        loss = start * (1 - gain * shape)
        if strategy == "hf_same_batch":
            loss = start * (1 + abs(gain) * 12 * spent**2) if gain < 0 else loss
        amount = known["budget"] * (spent if i < 20 else 0.99)
        rest = quality(loss, known, draw if i else np.random.default_rng(0))  # all runs have the first in common
        count = round(spent * (18 if strategy.startswith("hf_") else 1700))
        seconds = amount if known["unit"] == "seconds" else amount / 16
        gradients = amount if known["unit"] == "gradients" else amount * 300
        row = (run, count, seconds, gradients, rate_of(strategy, spent, known["lr"]))
        points.append(dict(zip(POINT, (*row, *rest), strict=True)))
    return points


def rate_of(strategy, spent, lr):
    rates = {
        "sgd_constant": lr,
        "sgd_tenth": lr / 10,
        "sgd_cosine": lr * (1 + np.cos(np.pi * spent)) / 2,
        "sgd_plateau": lr * 0.1 ** min(int(4 * spent), 3),
    }
    return rates.get(strategy, np.nan)


def steps_of(run, points, strategy, draw):
    losses = np.interp(np.arange(19), np.linspace(0, 18, len(points)), [p["train_loss"] for p in points])
    same = strategy == "hf_same_batch"
    for step in range(1, 19):
        before = losses[step - 1] * (1 + (0.03 if same else 0.08) * draw.standard_normal())
        after = before * (0.55 if same else 0.97)
        yield {
            "id": run,
            "step": step,
            "loss_before": before,
            "loss_after": after,
            "damping": 1.0,
            "reduction_ratio": 0.9,
            "cg_iterations": 20,
            "cg_iterate": 15,
            "step_size": 1.0,
            "outcome": "ACCEPTED",
        }


def failures():
    row = {
        "id": "digits_cnn-0-c3-lbfgs-1",
        "problem": "digits_cnn",
        "checkpoint": 3,
        "strategy": "lbfgs",
        "seed": 1,
        "error": "RuntimeError: CUDA out of memory <while> allocating 2 GiB; /a/very/long/path/" + "deep/" * 20,
    }
    damaged = {"id": "damaged", "error": "run.json is not JSON"}
    return pd.DataFrame([row, damaged])


def machines(runs):
    row = {"machine": "AMD EPYC, 2 cores", "device": "cpu", "python": "3.11.7", "torch": "2.13.0", "latephase": "0.2.0"}
    return pd.DataFrame([{**row, "runs": runs}])
