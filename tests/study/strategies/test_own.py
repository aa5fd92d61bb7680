"""Strategies that a function of one's own returns."""

import sys

import pytest
import torch
from tests.study.toy import REFERENCE, TOY, load_data, silent

from latephase.study.runs.budget import Budget
from latephase.study.runs.experiments import Place, perform
from latephase.study.runs.plan import plan_run, plan_runs, plan_training
from latephase.study.runs.store import Store
from latephase.study.show.styles import styles
from latephase.study.strategies.catalogue import find_strategy, parse_strategies
from latephase.study.strategies.own import reference_of

MINE = """
from latephase.strategies.first_order import FirstOrder
from latephase.strategies.hf import HF


def strategy(every=3, *, damping=0.5):
    return HF("mine", 12, 20, 15, options={"damping": damping})


def twin():
    return FirstOrder("sgd_constant")


def nothing():
    return None


class Half:
    name = "half"

    def settings(self):
        return {}


class Odd(Half):
    family = "odd"

    def start(self, problem, model, data, generator):
        pass


class Unwritable(Odd):
    family = FirstOrder.family

    def settings(self):
        return {"at": {1, 2}}
"""


@pytest.fixture
def file(tmp_path):
    path = sys.path.copy()
    (tmp_path / "my_file.py").write_text(MINE)
    yield tmp_path / "my_file.py"
    sys.path[:] = path
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]  # no others: what a library has registered elsewhere it cannot register twice


def test_from_a_file_with_options_or_without(file):
    plain, variant, swa = parse_strategies(f"{file}:strategy, {file}:strategy(damping=0.25),swa", TOY, 60)
    assert (plain.name, variant.name, swa.name) == ("mine", "mine(damping=0.25)", "swa")
    assert (plain.settings()["damping"], variant.settings()["damping"]) == (0.5, 0.25)
    assert find_strategy(reference_of(variant), TOY, 60).settings() == variant.settings()
    assert variant.family == find_strategy("hf_m12", TOY, 60).family
    assert len(set(styles(["mine", "mine(damping=0.25)", "hf_m256"]).values())) == 3
    torch.manual_seed(0)
    model, data = TOY.build_model(), load_data()
    trainer = variant.start(TOY, model, data, torch.Generator().manual_seed(0))
    assert trainer.step(0.0).record.damping == 0.25


def test_a_changed_file_is_another_run(file):
    def identity():
        return plan_run("t", 1, find_strategy(f"{file}:strategy", TOY, 60), 0, Budget.parse("9s")).identity

    before = identity()
    assert identity() == before
    file.write_text(f"{MINE}\n# a remark\n")
    assert identity() != before


def test_a_run_is_carried_out_and_one_whose_file_has_changed_since_it_was_planned_is_not(file, tmp_path):
    place = Place(str(tmp_path / "runs"))
    training = plan_training(REFERENCE, epochs=1, seed=0, device="cpu")
    assert perform(place, training, silent) == "complete"
    store = Store(place.address)
    first, second = plan_runs(
        store, training, checkpoint="last", strategies=f"{file}:strategy", seeds=2, budget=Budget.parse("70gradients")
    )
    assert perform(place, first, silent) == "complete"
    assert store.status(first.identity).record == first
    assert not store.steps(first.identity).empty
    file.write_text(MINE.replace("0.5", "0.75"))
    assert perform(place, second, silent) == "failed"
    assert "strategy 'mine' is now" in store.status(second.identity).details["error"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("absent.py:strategy", "absent.py: no such file"),
        ("my_file.py:stratgy", "has no function 'stratgy'. Did you mean 'strategy'"),
        ("my_file.py:strategy(colour=3)", "my_file.py:strategy cannot be called with the options colour"),
        ("my_file.py:nothing", "nothing returned NoneType, which has no name, family, settings, start"),
        ("my_file.py:Half", "Half returned Half, which has no family, start"),
        ("my_file.py:Odd", "family 'odd'; there are: Family.FIRST_ORDER"),
        ("my_file.py:Unwritable", "settings JSON cannot hold"),
        ("my_file.py:twin", "a strategy called 'sgd_constant', which is the name of another"),
    ],
)
def test_what_is_missing_is_said(file, monkeypatch, text, message):
    monkeypatch.chdir(file.parent)
    with pytest.raises(ValueError, match=message):
        parse_strategies(text, TOY, 60)
