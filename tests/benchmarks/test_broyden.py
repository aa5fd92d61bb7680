"""The benchmark of quasi-Newton updates: all of ours agree, and each way has a time."""

import sys

import pytest
from benchmarks import broyden


def test_all_ways_of_keeping_updates_agree():
    assert broyden.disagreement(20) < broyden.AGREED


@pytest.mark.parametrize("way", [broyden.held_apart, broyden.one_by_one, broyden.of_vectors, broyden.scipys])
def test_every_way_takes_time(way):
    assert way(10, 3) > 0.0


def test_nothing_is_timed_where_they_disagree(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["broyden", "--parameters", "10", "--iterations", "4"])
    assert broyden.main() == 0
    assert "| 10 parameters | " in capsys.readouterr().out
    monkeypatch.setattr(broyden, "AGREED", 0.0)
    assert broyden.main() == 1
    assert "differ" in capsys.readouterr().err
