"""Tables for the terminal."""

import io
from dataclasses import replace

import pytest
import torch
from rich.console import Console
from tests.study import made_up
from tests.study.analysis.test_scores import CURVES, results
from tests.study.toy import TOY

from latephase.study.show.tables import problems_table, summary_tables, table1


def text_of(table, width=100):
    file = io.StringIO()
    Console(file=file, width=width).print(table)
    return file.getvalue()


def row(text, name):
    return next(line.split() for line in text.splitlines() if line.split()[:1] == [name])


def test_the_summary_gives_mean_and_standard_deviation_over_seeds():
    text = text_of(summary_tables(results()))
    assert "p, checkpoint 1: 4.0 seconds of training each" in text
    assert row(text, "checkpoint") == ["checkpoint", "1.000", "50.00%"]
    loss, accuracy = ["0.7500", "±", "0.0707"], ["51.50", "±", "0.71%"]
    assert row(text, "sgd_constant") == ["sgd_constant", *loss, *accuracy, "0.36", "0.08", "3.0", "20", "4.0"]
    assert row(text, "sgd_tenth")[1:3] == ["∞", "−∞"]


def test_the_summary_says_what_diverged():
    assert "Diverged: sgd_tenth (1 of 2), hf_m256 (1 of 2)" in text_of(summary_tables(results()))
    fine = {key: curve for key, curve in CURVES.items() if key[0] == "sgd_constant"}
    assert "iverged" not in text_of(summary_tables(results(fine)))


def test_a_single_seed_has_no_deviation():
    one = results({key: curve for key, curve in CURVES.items() if key[1] == 0})
    text = text_of(summary_tables(one))
    assert row(text, "hf_m256") == ["hf_m256", "0.3000", "70.00%", "1.00", "1.00", "2.0", "20", "4.0"]


def test_there_is_a_table_for_every_checkpoint():
    text = text_of(summary_tables(made_up.results()))
    assert text.count("hf_m6144") == 6
    assert "poisson_pinn, checkpoint 3: 900 gradients each" in text


def test_the_demos_table_fits_a_small_terminal():
    curves = {("sgd_constant", seed): ([0.05, 0.04757 + 4e-5 * seed], [0.97, 0.98 - 0.002 * seed]) for seed in (0, 1)}
    curves |= {("hf_same_batch", seed): curve for (_, seed), curve in curves.items()}
    lines = text_of(summary_tables(results(curves)), width=80).splitlines()
    lengths = [len(line.split()) for line in lines if line.startswith(("sgd_constant", "hf_same_batch"))]
    assert lengths == [12, 12]  # nothing is wrapped


def test_strategies_are_not_taken_for_markup():
    curves = {("adamw(betas=[0.9, 0.99])", 0): CURVES["hf_m256", 0]}
    assert "adamw(betas=[0.9, 0.99])" in text_of(summary_tables(results(curves)))


def test_without_runs_there_is_nothing_to_sum_up():
    assert "no complete runs" in text_of(summary_tables(made_up.without(made_up.results())))


def test_problems_are_listed_with_their_size():
    before = torch.get_rng_state()
    text = text_of(problems_table([TOY, replace(TOY, name="other", source="made up")]))
    assert row(text, "toy")[-3:] == ["43", "2", "8"]  # 4·5 + 5 and 5·3 + 3 parameters
    assert "made up" in text
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("lr", [0.067966, 0.5])
def test_table_1_has_the_settings_of_sgd(lr):
    text = text_of(table1([replace(TOY, lr=lr)]))
    assert row(text, "toy") == ["toy", f"{lr:g}", "8", "2", "0.01"]


def test_where_the_training_is_not_by_sgd_table_1_says_by_what():
    text = text_of(table1([replace(TOY, first_phase="adam(lr=0.001)")]))
    assert row(text, "toy") == ["toy", "adam(lr=0.001)", "8", "2", "0.01"]
