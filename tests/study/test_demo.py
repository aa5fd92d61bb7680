import io

import pytest
import torch
from rich.console import Console
from tests.study.toy import TOY, load_data

from latephase.study.demo import STRATEGIES, compare
from latephase.study.progress import Reporter
from latephase.study.training import load_checkpoint


def comparison(out, budget):
    reporter = Reporter(Console(file=io.StringIO()), quiet=True)
    return compare(TOY, load_data(), out, epochs=3, budget=budget, seeds=range(4, 6), reporter=reporter)


def test_every_strategy_runs_with_every_seed_from_the_same_checkpoint(tmp_path):
    result = comparison(tmp_path, budget=0.05)
    assert result.budget == 0.05
    assert [(r.seed, r.strategy) for r in result.runs] == [(s, x.name) for s in (4, 5) for x in STRATEGIES]
    assert {r.curve[0].train_loss for r in result.runs} == {result.training.curve[-1].train_loss}
    assert all(r.curve[-1].seconds <= 0.05 for r in result.runs)
    state = load_checkpoint(tmp_path / "checkpoint.pt")
    assert all(torch.equal(state[name], value) for name, value in result.training.state.items())


def test_the_default_budget_is_a_tenth_of_the_training_time(tmp_path):
    result = comparison(tmp_path, budget=None)
    assert result.budget == pytest.approx(0.1 * result.training.curve[-1].seconds)
