"""What a run is named by."""

import json
from dataclasses import FrozenInstanceError, fields, replace

import pytest
from tests.study.toy import REFERENCE, TOY

from latephase.strategies.hf import OPTIONS
from latephase.study.runs.budget import Budget
from latephase.study.runs.plan import plan_run, plan_training
from latephase.study.runs.records import from_json
from latephase.study.strategies.catalogue import find_strategy

TRAINING = plan_training(REFERENCE, epochs=3, seed=0, device="cpu")
RUN = plan_run(TRAINING.identity, 2, find_strategy("hf_m12", TOY, 60), 1, Budget.parse("5%"))


@pytest.mark.parametrize("record", [TRAINING, RUN], ids=["training", "run"])
def test_records_survive_json(record):
    again = from_json(json.loads(json.dumps(record.to_json())))
    assert (again, again.identity) == (record, record.identity)


@pytest.mark.parametrize("record", [TRAINING, RUN], ids=["training", "run"])
def test_everything_in_a_record_is_part_of_its_identity(record):
    for field in fields(record):
        value = getattr(record, field.name)
        other = {"seed": 77} if isinstance(value, dict) else 77 if isinstance(value, int) else "other"
        assert replace(record, **{field.name: other}).identity != record.identity, field.name


def test_records_are_frozen():
    with pytest.raises(FrozenInstanceError):
        TRAINING.seed = 3  # type: ignore[misc]


def test_the_code_is_in_the_identity(monkeypatch):
    monkeypatch.setattr("latephase.study.runs.records.version", lambda name: "99.0")
    training = plan_training(REFERENCE, epochs=3, seed=0, device="cpu")
    run = plan_run(TRAINING.identity, 2, find_strategy("hf_m12", TOY, 60), 1, Budget.parse("5%"))
    assert training == replace(TRAINING, latephase="99.0")
    assert run == replace(RUN, latephase="99.0")
    assert {training.identity, run.identity}.isdisjoint({TRAINING.identity, RUN.identity})


def test_an_option_of_the_optimizer_whose_default_changes_makes_another_run(monkeypatch):
    monkeypatch.setitem(OPTIONS, "damping", 7.0)
    run = plan_run(TRAINING.identity, 2, find_strategy("hf_m12", TOY, 60), 1, Budget.parse("5%"))
    assert run.settings == {**RUN.settings, "damping": 7.0}
    assert run.identity != RUN.identity


@pytest.mark.parametrize("content", [{}, {"kind": "training"}, {**RUN.to_json(), "colour": 1}, {"kind": "walk"}])
def test_what_is_no_record_is_refused(content):
    with pytest.raises(ValueError, match="not one that this version of latephase writes"):
        from_json(content)
