import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from tests.study.toy import REFERENCE, TOY, load_data, silent

from latephase.study.analysis.results import load_results
from latephase.study.runs.budget import Budget
from latephase.study.runs.evaluation import evaluate
from latephase.study.runs.experiments import Place, perform
from latephase.study.runs.plan import plan_runs, plan_training
from latephase.study.runs.records import identify
from latephase.study.runs.store import Store, StoreError

TRAINING = plan_training(REFERENCE, epochs=3, seed=0, device="cpu")
TRAINING_ID = TRAINING.identity


def made(address, strategies="sgd_tenth,hf_m12", seeds=1, checkpoint="last", budget="120gradients"):
    """A folder with a training and runs, and the names of the runs."""
    place = Place(str(address))
    assert perform(place, TRAINING, silent) == "complete"
    records = plan_runs(
        Store(address),
        TRAINING,
        checkpoint=checkpoint,
        strategies=strategies,
        seeds=seeds,
        budget=Budget.parse(budget),
    )
    assert {perform(place, record, silent) for record in records} == {"complete"}
    return Store(address), [record.identity for record in records]


def test_a_run_is_found_again_by_its_record(tmp_path):
    store, (sgd, hf) = made(tmp_path)
    assert store.ids() == sorted([TRAINING_ID, sgd, hf])
    state, record, details = store.status(hf)
    assert (state, record.settings["curvature"], record.training) == ("complete", 12, TRAINING_ID)
    assert details["machine"]["latephase"]
    assert set(details["files"]) == {"curve.parquet", "network.pt", "steps.parquet"}
    assert store.checkpoints(TRAINING_ID) == [1, 2, 3]
    assert identify(dict(reversed(record.to_json().items()))) == hf
    assert replace(record, seed=1).identity != hf


@pytest.mark.parametrize("scheme", ["", "memory://"])
def test_results_are_what_was_stored(tmp_path, scheme):
    store, runs = made(f"{scheme}{tmp_path}/store", seeds=2, checkpoint="all")
    results = load_results(store)
    assert list(results.trainings.index) == [TRAINING_ID]
    training = results.trainings.loc[TRAINING_ID]
    assert (training["problem"], training["epochs"], training["steps"]) == ("toy", 3, 21)
    assert (training["metric"], training["higher_is_better"], training["percent"]) == ("accuracy", True, True)
    curve = results.curves[results.curves["id"] == TRAINING_ID]
    assert training["checkpoints"] == curve["seconds"].tolist()[1:]
    assert sorted(results.runs.index) == sorted(runs)
    assert len(runs) == 3 * 2 * 2
    assert set(results.runs["strategy"]) == {"sgd_tenth", "hf_m12"}
    assert set(results.runs["checkpoint"]) == {1, 2, 3}
    assert set(results.runs["unit"]) == {"gradients"}
    assert set(results.runs["budget"]) == {120.0}
    for run, row in results.runs.iterrows():
        points = results.curves[results.curves["id"] == run]
        assert points["steps"].iloc[0] == 0
        assert points["gradients"].max() <= 120.0
        # It began where the training's checkpoint was.
        assert points["train_loss"].iloc[0] == curve["train_loss"].iloc[row["checkpoint"]]
    hf = results.runs.index[results.runs["strategy"] == "hf_m12"]
    assert set(results.steps["id"]) == set(hf)
    assert (results.steps["loss_after"] <= results.steps["loss_before"]).all()
    assert results.failures.empty
    assert results.machines["runs"].tolist() == [1 + len(runs)]


def test_the_network_of_a_run_is_that_of_the_end_of_its_curve(tmp_path):
    store, runs = made(tmp_path, strategies="sgd_tenth,swa,hf_m12")
    for run in runs:
        model = TOY.build_model()
        model.load_state_dict(store.network(run))
        assert evaluate(TOY, model, load_data()).train_loss == store.curve(run)["train_loss"].iloc[-1]


def test_what_is_complete_is_not_made_again(tmp_path):
    made(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*") if path.is_file()}
    made(tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [
        ("curve.parquet", b"PAR1", "curve.parquet has changed"),
        ("curve.parquet", None, "curve.parquet is missing"),
        ("status.json", b'{"state": "comp', "status.json cannot be read"),
        ("config.json", b"{}", "not the one that the folder is named after"),
        ("config.json", b"\xff\xfe", "config.json cannot be read"),
    ],
)
def test_a_damaged_run_is_reported_skipped_put_aside_and_made_again(tmp_path, name, content, error):
    store, (sgd, hf) = made(tmp_path)
    victim = tmp_path / sgd / name
    victim.unlink() if content is None else victim.write_bytes(content)

    assert store.status(sgd).state == "damaged"
    results = load_results(store)
    assert list(results.runs.index) == [hf]
    (failure,) = results.failures.to_dict("records")
    assert failure["id"] == sgd
    assert error in failure["error"]

    store, _ = made(tmp_path)
    assert store.status(sgd).state == "complete"
    (aside,) = tmp_path.glob(f"{sgd}.damaged-*")
    assert (aside / name).exists() == (content is not None)
    assert load_results(store).failures.empty


def test_a_run_that_fails_says_why_and_is_tried_again(tmp_path, monkeypatch):
    store, (sgd, _) = made(tmp_path)
    record = replace(store.status(sgd).record, seed=7)

    def fall(*args, **kwargs):
        raise RuntimeError("out of luck")

    with monkeypatch.context() as context:
        context.setattr("latephase.study.runs.experiments.resume", fall)
        assert perform(Place(str(tmp_path)), record, silent) == "failed"
    (failure,) = load_results(store).failures.to_dict("records")
    assert (failure["error"], failure["strategy"], failure["problem"]) == (
        "RuntimeError: out of luck",
        "sgd_tenth",
        "toy",
    )
    assert record.identity not in load_results(store).runs.index
    assert perform(Place(str(tmp_path)), record, silent) == "complete"
    assert load_results(store).failures.empty


def test_an_interrupt_is_no_failure(tmp_path, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("latephase.study.runs.experiments.train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        perform(Place(str(tmp_path)), TRAINING, silent)
    assert Store(tmp_path).status(TRAINING_ID).state == "missing"


def test_a_training_goes_on_from_its_last_checkpoint(tmp_path, monkeypatch):
    undisturbed, _ = made(tmp_path / "a")
    disk = []
    save = Store.save_checkpoint

    def save_two(self, *args):
        if len(disk) == 2:
            raise KeyboardInterrupt
        disk.append(args)
        save(self, *args)

    with monkeypatch.context() as context:
        context.setattr(Store, "save_checkpoint", save_two)
        with pytest.raises(KeyboardInterrupt):
            perform(Place(str(tmp_path / "b")), TRAINING, silent)
    store, _ = made(tmp_path / "b")
    for number in (1, 2, 3):
        one, other = store.checkpoint(TRAINING_ID, number), undisturbed.checkpoint(TRAINING_ID, number)
        assert all((one.network[name] == other.network[name]).all() for name in one.network)
    assert store.curve(TRAINING_ID)["train_loss"].tolist() == undisturbed.curve(TRAINING_ID)["train_loss"].tolist()


def test_a_run_that_another_process_is_at_is_left_to_it(tmp_path):
    store, (sgd, _) = made(tmp_path)
    record = replace(store.status(sgd).record, seed=7)
    script = f"""
from latephase.study.runs.store import Store
with Store({str(tmp_path)!r}).claimed({record.identity!r}) as mine:
    print(mine, flush=True)
    input()
"""
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "True\n"
        assert perform(Place(str(tmp_path)), record, silent) == "busy"
        other.kill()  # the lock goes with the process
    assert perform(Place(str(tmp_path)), record, silent) == "complete"


def test_a_full_disk_is_an_error_and_what_is_complete_stays(tmp_path, monkeypatch):
    store, (sgd, _) = made(tmp_path)
    record = replace(store.status(sgd).record, seed=7)
    write = type(tmp_path).write_bytes

    def full(self, content):
        write(self, content[: len(content) // 2])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as context:
        context.setattr(type(tmp_path), "write_bytes", full)
        with pytest.raises(StoreError, match=r"cannot be written to .*No space left"):
            perform(Place(str(tmp_path)), record, silent)
    assert not list(tmp_path.rglob("*.part"))
    assert store.status(record.identity).state == "missing"
    assert store.status(sgd).state == "complete"


def test_too_little_room_is_seen_before_a_training(tmp_path):
    with pytest.raises(StoreError, match="MB free, and checkpoints need"):
        Store(tmp_path).prepare(needed=10**18)
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="cannot be written to"):
        Store(tmp_path / "file").prepare()


def test_checkpoints_hold_nothing_that_executes(tmp_path):
    made(tmp_path)
    content = torch.load(tmp_path / TRAINING_ID / "checkpoints" / "01.pt", weights_only=True)
    assert content["epoch"] == 1
    assert json.loads((tmp_path / TRAINING_ID / "config.json").read_text()) == TRAINING.to_json()
