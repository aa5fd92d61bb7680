"""A finish by several processes, each on its share of the data."""

import os
import signal
from pathlib import Path

import pytest
import torch
from tests.finishing.tasks import assert_same, examples, network, state
from tests.pages import DOCS, python
from tests.ranks import DiedError, together
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import latephase
from latephase import finish
from latephase.distributed import RankError
from latephase.finishing.candidates import STRATEGIES

LOSS = nn.CrossEntropyLoss()
ALL = examples()


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.5, weight_decay=1e-3)


def finished(model, *, data=ALL, **options):
    settings = {"budget": "1500gradients", "batch_size": 20, "valid_data": examples(60, seed=2), "progress": False}
    report = finish(model, LOSS, data, optimizer=sgd(model), **{**settings, **options})
    return state(model), [phase.to_json() for phase in report.phases], report.remarks


def alone(rank, strategy):
    return finished(network(), strategies=[strategy], batch_size=60, budget="80gradients", process_group="world")


@pytest.mark.parametrize("strategy", ["decay", "l-bfgs", "hessian-free"])
def test_halves_of_all_data_are_all_data(strategy, tmp_path):
    """Without noise two processes do what one does."""
    expected, phases, _ = finished(network(), strategies=[strategy], batch_size=120, budget="80gradients")
    for found, same_phases, remarks in together(2, tmp_path, alone, strategy):
        assert not remarks
        assert [phase["steps"] for phase in same_phases] == [phase["steps"] for phase in phases]
        assert phases[0]["steps"] > 0
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-7)


def normalised():
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3)).double()


class EnoughError(Exception):
    pass


def many_ways(rank, folder):
    """Data shared out, shares of one's own, a loader with a sampler, and a wrapped network."""
    x, y = ALL
    group = {"process_group": "world"}
    loader = DataLoader(TensorDataset(x, y), 20, sampler=DistributedSampler(TensorDataset(x, y), 2, rank))
    results = {
        "shared out": finished(normalised(), **group),
        "own": finished(normalised(), data=(x[rank::2], y[rank::2]), **group),
        "loader": finished(normalised(), data=loader, batch_size=None, **group),
    }
    wrapped = DistributedDataParallel(normalised())
    results["wrapped"] = finished(wrapped, **group)
    calls = 0

    def enough(report):
        nonlocal calls
        calls += 1
        if calls > 5 and rank == 1:
            raise EnoughError

    with pytest.raises((EnoughError, RankError)) as error:
        finished(normalised(), out=folder, callbacks=[enough], **group)
    results["ended by"] = error.type.__name__
    results["resumed"] = finished(normalised(), out=folder, **group)
    return results


def test_all_processes_come_to_the_same_whatever_form_the_data_have(tmp_path):
    first, second = together(2, tmp_path, many_ways, tmp_path / "finish")
    expected, phases, remarks = first["shared out"]
    assert {phase["candidate"] for phase in phases} == set(STRATEGIES)
    assert not any("failed" in phase["outcome"] for phase in phases)
    assert not remarks
    assert (first["ended by"], second["ended by"]) == ("RankError", "EnoughError")
    for results in first, second:
        for way in "shared out", "own", "loader", "resumed":
            assert_same(results[way][0], expected)
            assert results[way][1] == phases
        assert_same({name.removeprefix("module."): value for name, value in results["wrapped"][0].items()}, expected)


CALLS: list[int] = []  # of all copies of a network, whatever is put back after a step


class FailsOnce(nn.Module):
    """On one rank, and once only."""

    def __init__(self, at):
        super().__init__()
        self.at = at

    def forward(self, x):
        CALLS.append(0)
        if len(CALLS) == self.at:
            raise ArithmeticError("one of them fails")
        return x


def failing(rank, at):
    model = network()
    model.append(FailsOnce(at if rank == 1 else -1))
    return finished(model, budget="600gradients", process_group="world")


@pytest.mark.parametrize("at", [10, 80, 250])
def test_what_fails_on_one_is_out_on_all(at, tmp_path):
    (found, phases, _), (found_too, phases_too, _) = together(2, tmp_path, failing, at)
    assert_same(found, found_too)
    outcomes = [phase["outcome"] for phase in phases if "failed" in phase["outcome"]]
    assert len(outcomes) == 1
    assert "RankError" in outcomes[0]
    assert "ArithmeticError: one of them fails" in outcomes[0]
    assert "failed with ArithmeticError" in "".join(phase["outcome"] for phase in phases_too)
    assert [phase["candidate"] for phase in phases] == [phase["candidate"] for phase in phases_too]


class Dies(FailsOnce):
    """A rank that is gone in the middle of a forward pass."""

    def forward(self, x):
        CALLS.append(0)
        if len(CALLS) == self.at:
            os.kill(os.getpid(), signal.SIGKILL)
        return x


def losing_one(rank, at, folder):
    model = network()
    model.append(Dies(at if rank == 1 else -1))
    try:
        return finished(model, budget="600gradients", process_group="world", out=folder)
    except RuntimeError as error:
        return state(model), type(error).__name__, str(error).split(" [")[0]


def test_a_process_that_dies_ends_the_finish_which_goes_on_where_it_was(tmp_path):
    folders = [tmp_path / name for name in ("never", "died", "again")]
    for folder in folders:
        folder.mkdir()
    (expected, phases, _), _ = together(2, folders[0], losing_one, -1, None)
    (left, *error), dead = together(2, folders[1], losing_one, 250, tmp_path / "finish")
    assert isinstance(dead, DiedError)
    assert error == ["RankLostError", "an exchange of 2 ranks failed; has one died?"]
    assert not torch.equal(left["0.weight"], network().state_dict()["0.weight"])  # the best so far
    for found, same_phases, _ in together(2, folders[2], losing_one, -1, tmp_path / "finish"):
        assert_same(found, expected)
        assert same_phases == phases  # in none of which a strategy is out for what it had no part in


def unlike(rank):
    x, y = ALL
    with pytest.raises(RankError, match="differs from rank 0 in the network, the data or how finish is called"):
        finished(network(seed=rank), process_group="world")
    with pytest.raises(RankError, match="differs"):
        finished(network(), process_group="world", seed=rank)
    with pytest.raises(RuntimeError, match='process_group="world"'):
        finished(network())
    with pytest.raises(ValueError, match="one example for each of 2 processes, not 1"):
        finished(network(), data=(x[:1], y[:1]), process_group="world")
    many = slice(0, 50 + rank)  # the others' share is one longer
    remarks = finished(network(), data=(x[many].flip(0), y[many].flip(0)), process_group="world")[2]
    in_seconds = finished(network(), budget=1.0, process_group="world")
    return remarks, in_seconds[:2]


def test_what_else_differs_is_told(tmp_path):
    (none, in_seconds), (remarks, in_seconds_too) = together(2, tmp_path, unlike)
    assert not none
    assert remarks == ("1 examples of train_data are left out, as all processes use as many",)
    assert_same(in_seconds[0], in_seconds_too[0])
    assert in_seconds[1] == in_seconds_too[1]


def by_closure(rank, folder: Path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    x = ALL[0][rank::2]

    def closure():
        outputs = model(x)
        return (outputs - x[:, :1] * x[:, 1:2]).square().mean(), outputs

    report = finish(model, closure, budget="300gradients", progress=False, process_group="world")
    return state(model), report.score, float(closure()[0])


def test_closures_of_all_processes_are_averaged(tmp_path):
    (found, score, own), (found_too, score_too, own_too) = together(2, tmp_path, by_closure, tmp_path)
    assert_same(found, found_too)
    assert score == score_too == pytest.approx((own + own_too) / 2, rel=1e-10)
    assert own != own_too


def on_the_page(rank, code):
    names = {"latephase": latephase}
    exec(code, names)
    model = network()
    report = names["finish_on"](rank, model, LOSS, ALL, examples(60, seed=2))
    return state(model), report.score_before, report.score


def test_the_example_of_the_docs(tmp_path):
    (found, before, after), (found_too, *_) = together(2, tmp_path, on_the_page, python(DOCS / "finish.md")[1])
    assert_same(found, found_too)
    assert after < before
