"""What `latephase status` says of a folder of runs."""

from dataclasses import replace
from pathlib import Path

import pytest
from tests.study.show.test_tables import row, text_of

from latephase.study.runs.records import LateRun, Training
from latephase.study.runs.store import Store
from latephase.study.show.status import status_tables

TRAINING = Training("digits_cnn", "digits_cnn", 0.05, 32, 400, 5e-4, "sgd_constant", None, seed=3, device="cpu")
RUN = LateRun(TRAINING.identity, 4, "hf_m256", "hf_m256", "hessian_free", {}, seed=0, budget="10%")


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path)


def complete(store, record):
    store.complete(store.begin(record), curve=())


def said(store):
    checkpoints = {TRAINING.identity: 10}
    return text_of(status_tables({run: store.status(run) for run in store.ids()}, checkpoints), width=120)


def test_complete_runs_are_counted_for_each_strategy_checkpoint_and_budget(store):
    complete(store, TRAINING)
    for checkpoint, seeds in ((4, 2), (10, 1)):
        for seed in range(seeds):
            complete(store, replace(RUN, checkpoint=checkpoint, seed=seed))
    complete(store, replace(RUN, checkpoint=10, budget="30s"))
    complete(store, replace(RUN, checkpoint=10, strategy="sgd_tenth"))
    lines = [line.split() for line in said(store).splitlines() if line.strip() and "─" not in line]
    assert lines == [
        ["digits_cnn,", "training,", "seed", "3:", "complete,", "10", "checkpoints"],
        ["complete", "runs", "from", "checkpoint", "budget", "4", "10"],
        ["sgd_tenth", "10%", "–", "1"],
        ["hf_m256", "10%", "2", "1"],
        ["hf_m256", "30s", "–", "1"],
    ]


def test_what_is_not_complete_is_counted_beside_it_and_errors_are_named(store):
    complete(store, RUN)
    store.begin(replace(RUN, seed=1))
    failed = store.begin(replace(RUN, seed=2))
    store.fail(failed, RuntimeError("no [room]"))
    complete(store, broken := replace(RUN, seed=3))
    Path(store.address, broken.identity, "curve.parquet").write_bytes(b"0")
    text = said(store)
    assert " ".join(row(text, "hf_m256")) == "hf_m256 10% 1, 1 not finished, 1 failed, 1 damaged"
    assert f"{failed} (hf_m256, checkpoint 4, seed 2) failed: RuntimeError: no [room]" in text
    assert f"{broken.identity} (hf_m256, checkpoint 4, seed 3) damaged: curve.parquet has changed" in text


def test_a_training_may_be_unfinished_or_not_there(store):
    complete(store, RUN)
    assert f"{TRAINING.identity}: a training that is not here or cannot be read" in said(store)
    store.begin(TRAINING)
    assert "digits_cnn, training, seed 3: not finished, 10 checkpoints" in said(store)


def test_a_folder_whose_config_cannot_be_read_is_named(store):
    run = store.begin(RUN)
    Path(store.address, run, "config.json").write_text("{")
    assert f"{run} (unreadable) damaged: config.json cannot be read" in said(store)
