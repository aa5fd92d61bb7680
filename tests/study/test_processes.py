"""A study by several processes that take each step together."""

import subprocess
import sys

import pytest
import torch
from tests.ranks import together
from tests.study.toy import REFERENCE, silent

from latephase.distributed import RankError
from latephase.study.analysis.results import load_results
from latephase.study.processes import is_first, joined, own_device
from latephase.study.runs import experiments
from latephase.study.runs.budget import Budget
from latephase.study.runs.experiments import Place, perform
from latephase.study.runs.plan import plan_runs, plan_training
from latephase.study.runs.records import from_json
from latephase.study.runs.share import stayed_together
from latephase.study.runs.store import Store

FULL_BATCH = """
from dataclasses import replace

from tests.study.toy import TOY


def of(size):
    return lambda: replace(TOY, batch_size=size, curvature_batch=size, gradient_batch=size, evaluation_batch=size)


halves, whole = of(30), of(60)
"""
WITHOUT_NOISE = "sgd_constant, sgd_cosine, swa, lbfgs, ssbroyden, hf_same_batch, hf_auto, finish"


def made(folder, training, strategies, processes):
    """Train and resume; return state and network by strategy, and those of the training."""
    place = Place(str(folder), process_group="world" if processes > 1 else None)
    found: dict = {"training": (perform(place, training, silent), None)}
    store, budget = Store(str(folder)), Budget.parse("40gradients")
    for run in plan_runs(store, training, checkpoint="last", strategies=strategies, seeds=1, budget=budget):
        state = perform(place, run, silent)
        found[run.strategy] = state, store.network(run.identity) if state == "complete" else None
    return found


def planned(reference, processes):
    return plan_training(reference, epochs=3, seed=0, device="cpu", processes=processes)


def halves(rank, folder, reference):
    return made(folder, planned(reference, 2), WITHOUT_NOISE, 2)


def test_two_processes_with_half_of_the_data_each_do_what_one_does_with_all(tmp_path):
    (tmp_path / "full_batch.py").write_text(FULL_BATCH)
    reference = f"{tmp_path / 'full_batch.py'}"
    one = made(tmp_path / "one", planned(f"{reference}:whole", 1), WITHOUT_NOISE, 1)
    for two in together(2, tmp_path, halves, tmp_path / "two", f"{reference}:halves"):
        assert {name: state for name, (state, _) in two.items()} == dict.fromkeys(one, "complete")
        for strategy, (_, network) in list(two.items())[1:]:
            for name, value in one[strategy][1].items():
                torch.testing.assert_close(network[name], value, rtol=1e-6, atol=1e-9, msg=f"{strategy}, {name}")
    found, expected = (load_results(Store(str(tmp_path / folder))) for folder in ("two", "one"))
    assert found.trainings["processes"].tolist() == [2]
    assert len(found.runs) == len(expected.runs) == len(one) - 1
    curves = [results.curves[results.curves["id"] == results.trainings.index[0]] for results in (found, expected)]
    for column in ("train_loss", "test_loss", "test_metric"):
        assert curves[0][column].tolist() == pytest.approx(curves[1][column].tolist(), rel=1e-9)


FOLDERS = ("runs", "runs-undisturbed")


def training_of(seed):
    return plan_training(REFERENCE, epochs=3, seed=seed, device="cpu", processes=2)


def with_failures(rank, folder):
    found = {"strategies": made(folder, planned(REFERENCE, 2), "kfac_cosine, sgd_tenth, hf_m12", 2)}
    training, place = training_of(1), Place(str(folder), process_group="world")
    kept, save = [], Store.save_checkpoint

    def full(store, run, number, checkpoint):
        kept.append(number)
        if len(kept) > 2:
            raise OSError("No space left on device")
        save(store, run, number, checkpoint)

    Store.save_checkpoint = full
    found["full"] = perform(place, training, silent)
    Store.save_checkpoint = save
    found["checkpoints"] = Store(str(folder)).checkpoints(training.identity)
    found["again"] = perform(place, training, silent)
    whole = vars(experiments)["train"]
    if rank == 1:
        vars(experiments)["train"] = None
    found["of one"] = perform(place, training_of(2), silent)
    vars(experiments)["train"] = whole
    parted = torch.nn.Linear(1, 1)
    torch.nn.init.constant_(parted.weight, rank)
    with pytest.raises(RankError, match="rank 1 differs from rank 0 in the network, trained by what may be for one"):
        stayed_together(parted, place.ranks)
    found["undisturbed"] = perform(Place(f"{folder}-undisturbed", process_group="world"), training, silent)
    return found


def test_what_fails_on_one_has_failed_on_all_and_what_comes_next_is_as_if_it_had_not(tmp_path):
    for found in together(2, tmp_path, with_failures, tmp_path / "runs"):
        states = {name: state for name, (state, _) in found["strategies"].items()}
        assert states == {
            "training": "complete",
            "kfac_cosine": "failed",
            "sgd_tenth": "complete",
            "hf_m12": "complete",
        }
        assert found["full"] == "failed"
        assert found["checkpoints"] == [1, 2]
        assert (found["again"], found["undisturbed"]) == ("complete", "complete")
        assert found["of one"] == "failed"
    store = Store(str(tmp_path / "runs"))
    (kfac,) = load_results(store).failures.query("strategy == 'kfac_cosine'")["error"]
    assert "KFAC is for one process" in kfac
    one, other = (Store(f"{tmp_path / name}").checkpoint(training_of(1).identity, 3) for name in FOLDERS)
    assert all(torch.equal(one.network[name], value) for name, value in other.network.items())
    assert [point.train_loss for point in one.curve] == [point.train_loss for point in other.curve]
    assert "as it failed on rank 1: TypeError" in store.status(training_of(2).identity).details["error"]


TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "latephase"]


def test_torchrun_carries_out_a_study(tmp_path):
    runs = tmp_path / "runs"
    options = ["--epochs", "2", "--strategies", "sgd_tenth,hf_m12", "--seeds", "1", "--budget", "60gradients"]
    command = [*TORCHRUN, "study", REFERENCE, "--out", str(runs), "--checkpoint", "last", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\nreport: ") == 1
    assert "2/2 hf_m12, checkpoint 2, seed 0: complete" in done.stdout
    assert "2 processes" in done.stdout
    assert "8 × 2" in (runs / "report.html").read_text()
    alone = [sys.executable, "-m", "latephase", "resume", str(runs), "--strategies", "sgd_tenth"]
    refused = subprocess.run(alone, capture_output=True, text=True, check=False, timeout=240)
    assert refused.returncode == 2
    assert "only as many go on from them" in " ".join(refused.stderr.replace("│", " ").split())


def test_a_training_of_several_processes_is_another_one():
    one, two = planned(REFERENCE, 1), planned(REFERENCE, 2)
    assert one.identity != two.identity
    assert "processes" not in one.to_json()
    assert from_json(one.to_json()) == one
    assert from_json(two.to_json()) == two
    assert two.title == "toy, training, seed 0, 2 processes"


def test_each_process_has_a_device(monkeypatch):
    assert is_first()
    with joined(torch.device("cpu")) as group:
        assert group is None
    for name, value in {"TORCHELASTIC_RUN_ID": "tests", "RANK": "3", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    assert not is_first()
    assert [own_device(name) for name in ("cpu", "cuda", "cuda:0")] == ["cpu", "cuda:1", "cuda:0"]
