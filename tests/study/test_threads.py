"""A run has the threads that its problem asks for, and the process its own again afterwards."""

import re

import pytest
import torch
from tests.study.toy import silent

from latephase.study.problems import find_problem
from latephase.study.runs.experiments import Place, load_problem_data, perform
from latephase.study.runs.plan import plan_training
from latephase.study.runs.store import Store
from latephase.study.threads import threads

OWN = """
from dataclasses import replace

import torch
from tests.study import toy

torch.set_num_threads(5)


def load_data(folder):
    torch.set_num_threads(6)
    return toy.load_data()


def build_model():
    torch.set_num_threads(7)
    return toy.build_model()


def build():
    return replace(toy.TOY, load_data=load_data, cpu_threads=2)


def build_changing():
    return replace(build(), build_model=build_model, cpu_threads=None)


def build_failing():
    return replace(build(), load_data=lambda folder: load_data(folder) and 1 / 0)
"""


@pytest.fixture(autouse=True)
def own(tmp_path):
    """A problem of one's own, in a process that has three threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    (tmp_path / "own.py").write_text(OWN)
    yield f"{tmp_path / 'own.py'}:build"
    torch.set_num_threads(before)


def test_the_former_number_comes_back():
    with threads(2):
        assert torch.get_num_threads() == 2
    assert torch.get_num_threads() == 3
    with threads(None):
        assert torch.get_num_threads() == 3
        torch.set_num_threads(1)
    assert torch.get_num_threads() == 3
    with pytest.raises(ZeroDivisionError), threads(2):
        raise ZeroDivisionError
    assert torch.get_num_threads() == 3


def training_of(reference):
    return plan_training(reference, epochs=1, seed=0, device="cpu")


def test_a_run_has_its_problems_threads_and_leaves_the_process_its_own(own, tmp_path):
    training, place = training_of(own), Place(str(tmp_path / "runs"))
    assert perform(place, training, silent) == "complete"
    machine = Store(place.address).status(training.identity).details["machine"]["machine"]
    assert re.search(r"\b2 threads", machine)
    assert torch.get_num_threads() == 3


def test_a_run_that_fails_leaves_the_process_its_threads_too(own, tmp_path, monkeypatch):
    seen = []

    def fall(*args, **kwargs):
        seen.append(torch.get_num_threads())
        raise RuntimeError("out of luck")

    monkeypatch.setattr("latephase.study.runs.experiments.train", fall)
    assert perform(Place(str(tmp_path / "runs")), training_of(own), silent) == "failed"
    assert seen == [2]
    assert torch.get_num_threads() == 3


def test_the_next_problem_in_the_process_has_not_the_threads_of_the_last(own, tmp_path):
    place = Place(str(tmp_path / "runs"))
    perform(place, training_of(own), silent)
    training = training_of(f"{own}_changing")
    assert perform(place, training, silent) == "complete"
    assert torch.get_num_threads() == 3


@pytest.mark.parametrize("function", ["build", "build_changing", "build_failing"])
def test_a_file_and_what_it_loads_leave_the_process_its_threads(own, function):
    reference = own.replace("build", function)
    find_problem(reference)
    assert torch.get_num_threads() == 3
    training = training_of(reference)
    try:
        load_problem_data(training, Place("nowhere"))
    except ZeroDivisionError:
        assert function == "build_failing"
    assert torch.get_num_threads() == 3


@pytest.mark.parametrize(("device", "number"), [("cpu", 2), ("meta", None)])
def test_the_number_is_for_runs_on_a_cpu(own, tmp_path, monkeypatch, device, number):
    used = []
    monkeypatch.setattr(
        "latephase.study.runs.experiments.threads", lambda number: used.append(number) or threads(number)
    )
    perform(Place(str(tmp_path / "runs"), device=device), training_of(own), silent)
    assert used == [None, number]  # for what the problem loads, and for the run
