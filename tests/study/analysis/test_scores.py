"""Scores of results small enough to work out by hand."""

import numpy as np
import pandas as pd
import pytest
from tests.study import made_up

from latephase.study.analysis.results import Results
from latephase.study.analysis.scores import training_names

INF, NAN = float("inf"), float("nan")

# Train losses and test accuracies at 0, 2 and 4 of a budget of 4 seconds.
CURVES = {
    ("sgd_constant", 0): ([1.0, 0.9, 0.8], [0.50, 0.52, 0.51]),
    ("sgd_constant", 1): ([1.0, 0.7, 0.9], [0.50, 0.51, 0.51]),
    ("hf_m256", 0): ([1.0, 0.6, 0.3], [0.50, 0.60, 0.70]),
    ("hf_m256", 1): ([1.0, 0.75, NAN], [0.50, 0.54, NAN]),
    ("sgd_tenth", 0): ([1.0, 1.1, 1.2], [0.50, 0.40, 0.30]),
    ("sgd_tenth", 1): ([NAN, INF, NAN], [NAN, NAN, NAN]),
}


def results(curves=CURVES, *, higher_is_better=True, budgets=None, trainings=None):
    trainings = trainings or {"t": {}}
    metric = {"metric": "accuracy", "higher_is_better": higher_is_better, "percent": True, "checkpoints": [60.0]}
    problem = {"lr": 0.1, "batch_size": 8, "weight_decay": 0.0, "processes": 1}
    settings = {"seed": 0, "epochs": 3, "seconds": 60.0, "steps": 9, **problem}
    runs, points = {}, []
    for training in trainings:
        for (strategy, seed), (losses, metrics) in curves.items():
            run = f"{training}-{strategy}-{seed}"
            budget, unit = (budgets or {}).get((strategy, seed), (4.0, "seconds"))
            place = {"training": training, "problem": "p", "checkpoint": 1, "strategy": strategy, "seed": seed}
            place["family"] = made_up.family_of(strategy)
            runs[run] = {**place, "budget": budget, "unit": unit}
            for i, (loss, value) in enumerate(zip(losses, metrics, strict=True)):
                spent = {"steps": 10 * i, "seconds": 2.0 * i, "gradients": 100.0 * i, "lr": 0.1}
                quality = {"train_loss": loss, "train_metric": NAN, "test_loss": NAN, "test_metric": value}
                points.append({"id": run, **spent, **quality})
    rows = [{"problem": "p", **settings, **metric, **other} for other in trainings.values()]
    return Results(
        trainings=pd.DataFrame(rows, index=list(trainings)),
        runs=pd.DataFrame.from_dict(runs, orient="index"),
        curves=pd.DataFrame(points),
        steps=pd.DataFrame(),
        failures=pd.DataFrame(),
        machines=pd.DataFrame(),
    )


def test_best_is_the_lowest_loss_and_the_highest_metric():
    table = results().best
    assert list(table["best_train_loss"]) == [0.8, 0.7, 0.3, 0.75, 1.0, INF]
    assert list(table["best_test_metric"]) == [0.52, 0.51, 0.70, 0.54, 0.50, -INF]
    assert list(table["steps"]) == [20] * 6
    assert list(table["spent"]) == [4.0] * 6
    assert list(table["start_train_loss"])[:5] == [1.0] * 5


def test_best_of_a_metric_that_is_better_the_lower():
    table = results(higher_is_better=False).best
    assert list(table["best_test_metric"]) == [0.50, 0.50, 0.50, 0.50, 0.30, INF]


@pytest.mark.parametrize("absurd", [1e298, -1e298, INF, NAN])
def test_where_a_run_has_diverged_nothing_counts(absurd):
    curves = {**CURVES, ("hf_m256", 1): ([1.0, 0.75, absurd], [0.50, 0.54, 0.99])}
    table = results(curves).scores
    assert list(table["diverged"]) == [False, False, False, True, False, True]
    assert table[["best_train_loss", "best_test_metric"]].iloc[3].tolist() == [0.75, 0.54]
    assert table["time_to_target"].iloc[3] == 2.0
    usual = results().scores
    assert list(table["train_score"]) == pytest.approx(list(usual["train_score"]))
    assert list(table["test_score"]) == pytest.approx(list(usual["test_score"]))
    rows = results(curves).summary.set_index("strategy")
    assert rows["diverged"].to_dict() == {"sgd_constant": 0, "sgd_tenth": 1, "hf_m256": 1}
    assert rows.loc["hf_m256", "train_loss_mean"] == pytest.approx((0.3 + 0.75) / 2)


def test_what_is_not_reached_before_a_run_diverges_is_never_reached():
    curves = {**CURVES, ("hf_m256", 1): ([1.0, 0.95, -1e298], [0.50, 0.54, 0.99])}
    assert results(curves).scores["time_to_target"].iloc[3] == INF


def test_best_is_looked_for_within_the_budget():
    table = results(budgets=dict.fromkeys(CURVES, (2.0, "seconds"))).best
    assert list(table["best_train_loss"]) == [0.9, 0.7, 0.6, 0.75, 1.0, INF]
    assert list(table["spent"]) == [2.0] * 6
    table = results(budgets=dict.fromkeys(CURVES, (100.0, "gradients"))).best
    assert list(table["best_train_loss"]) == [0.9, 0.7, 0.6, 0.75, 1.0, INF]
    assert list(table["spent"]) == [100.0] * 6


def test_scores_map_the_best_run_to_one_and_the_worst_to_zero():
    table = results().scores
    loss = [(1.0 - x) / 0.7 for x in (0.8, 0.7, 0.3, 0.75, 1.0)]
    assert list(table["train_score"]) == pytest.approx([*loss, 0.0])
    accuracy = [(x - 0.50) / 0.20 for x in (0.52, 0.51, 0.70, 0.54, 0.50)]
    assert list(table["test_score"]) == pytest.approx([*accuracy, 0.0])
    turned = results(higher_is_better=False).scores
    assert list(turned["test_score"]) == pytest.approx([0, 0, 0, 0, 1, 0])


def test_equal_runs_have_all_one_but_those_that_are_not_finite():
    same = {("sgd_constant", seed): ([1.0, 1.0, 1.0], [0.5, 0.5, 0.5]) for seed in (0, 1)}
    assert list(results(same).scores["train_score"]) == [1.0, 1.0]
    same["hf_m256", 0] = ([NAN] * 3, [NAN] * 3)
    assert list(results(same).scores["train_score"]) == [1.0, 1.0, 0.0]


def test_the_target_is_the_baselines_median_and_the_time_the_first_that_is_as_low():
    table = results().scores
    assert list(table["target"]) == [0.8] * 6  # of 0.7 and 0.8
    assert list(table["time_to_target"]) == [4.0, 2.0, 2.0, 2.0, INF, INF]
    in_gradients = results(budgets=dict.fromkeys(CURVES, (200.0, "gradients"))).scores
    assert list(in_gradients["time_to_target"]) == [200.0, 100.0, 100.0, 100.0, INF, INF]


def test_the_time_is_never_if_half_of_the_seeds_never_get_there():
    curves = {**CURVES, ("hf_m256", 1): ([1.0, 0.95, 0.95], [0.5, 0.5, 0.5])}
    assert list(results(curves).scores["time_to_target"])[2:4] == [2.0, INF]
    assert results(curves).summary.set_index("strategy").loc["hf_m256", "time_to_target"] == INF


def test_without_a_baseline_there_is_no_target():
    table = results({key: value for key, value in CURVES.items() if key[0] != "sgd_constant"}).scores
    assert table["target"].isna().all()
    assert table["time_to_target"].isna().all()


def test_trainings_are_scored_apart():
    made = results(trainings={"t": {"seed": 0}, "u": {"seed": 1}})
    later = made.curves["id"].str.startswith("u-")
    made.curves.loc[later, "train_loss"] *= 100
    table = made.scores
    one, other = (table[table["training"] == training] for training in ("t", "u"))
    assert list(one["train_score"]) == pytest.approx(list(other["train_score"]))
    assert list(one["target"] * 100) == pytest.approx(list(other["target"]))
    assert list(made.summary["runs"]) == [4, 4, 4]


def test_summary_over_seeds():
    table = results().summary.set_index("strategy")
    assert list(table.index) == ["sgd_constant", "sgd_tenth", "hf_m256"]
    row = table.loc["sgd_constant"]
    assert (row["problem"], row["checkpoint"], row["runs"], row["unit"]) == ("p", 1, 2, "seconds")
    assert row["train_loss_mean"] == pytest.approx(0.75)
    assert row["train_loss_std"] == pytest.approx(0.1 / 2**0.5)
    quartiles = [row[f"train_loss_{part}"] for part in ("q25", "median", "q75")]
    assert quartiles == pytest.approx([0.725, 0.75, 0.775])
    assert row["test_metric_mean"] == pytest.approx(0.515)
    assert row["train_score_mean"] == pytest.approx((0.2 + 0.3) / 2 / 0.7)
    assert (row["steps"], row["spent"], row["budget"]) == (20, 4, 4)
    assert row["time_to_target"] == 3.0
    assert table.loc["hf_m256", "time_to_target"] == 2.0


def test_summary_of_a_run_that_is_nowhere_finite():
    row = results().summary.set_index("strategy").loc["sgd_tenth"]
    assert row["train_loss_mean"] == INF
    assert np.isnan(row["train_loss_std"])
    assert (row["train_loss_q25"], row["train_loss_q75"]) == (INF, INF)
    assert row["test_metric_mean"] == -INF


def test_runs_under_different_budgets_are_not_compared():
    budgets = {key: (2.0, "seconds") for key in CURVES if key[1] == 1}
    table = results(budgets=budgets).scores
    assert sorted(set(table["problem"])) == ["p, 2.0 seconds", "p, 4.0 seconds"]
    assert table.groupby("problem")["train_score"].max().tolist() == [1.0, 1.0]


def test_trainings_with_different_settings_are_not_mixed():
    names = training_names(
        results(trainings={"a": {"epochs": 3}, "b": {"epochs": 30}, "c": {"epochs": 30, "seed": 1}}).trainings
    )
    assert list(names) == ["p (epochs 3)", "p (epochs 30)", "p (epochs 30)"]
    names = training_names(results(trainings={"a": {}, "b": {"processes": 2}}).trainings)
    assert list(names) == ["p (processes 1)", "p (processes 2)"]
    names = training_names(results(trainings={"abcdefgh": {}, "bcdefghi": {}}).trainings)  # another device, say
    assert list(names) == ["p (abcdef)", "p (bcdefg)"]
    assert list(training_names(results(trainings={"a": {"seed": 0}, "b": {"seed": 1}}).trainings)) == ["p", "p"]


def test_results_without_runs():
    made = made_up.without(made_up.results())
    assert made.best.empty
    assert made.scores.empty
    assert made.summary.empty


def test_made_up_results_have_a_best_and_a_worst_run_at_every_checkpoint():
    table = made_up.results().scores
    extremes = table.groupby(["problem", "checkpoint"])[["train_score", "test_score"]].agg(["min", "max"])
    assert (extremes.to_numpy() == [0, 1, 0, 1]).all()
    assert len(extremes) == 6
