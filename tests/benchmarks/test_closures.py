"""The benchmark of closures: both take the same step, and one that takes another fails it."""

from __future__ import annotations

import sys

import pytest
from benchmarks import closures
from benchmarks.networks import NETWORKS, Network
from torch import nn


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(NETWORKS, "small", Network("small", lambda: nn.Linear(6, 3), (6,), 3, batch=10, micro_batch=5))
    monkeypatch.setattr(sys, "argv", ["closures", "--networks", "small", "--rounds", "3"])


def test_both_closures_take_the_same_step() -> None:
    equal, ratio = closures.measure("small", rounds=2)
    assert equal
    assert 0.0 < ratio["q1"] <= ratio["median"] <= ratio["q3"]


def test_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert closures.main() == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith("| yes |")


def test_another_step_is_seen(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(closures.WAYS, "ordinary", lambda task, optimizer: None)
    assert closures.main() == 1
    assert capsys.readouterr().out.splitlines()[-1].endswith("| no |")
