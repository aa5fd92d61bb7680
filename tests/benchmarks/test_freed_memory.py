"""The benchmark of freed memory: a row for each optimizer, and none where the two ways differ."""

import json
import platform
import subprocess
import sys

import pytest
from benchmarks import freed_memory

ON_GLIBC = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")


@ON_GLIBC
def test_a_row_for_each_optimizer(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["freed_memory", "--networks", "mlp", "--rounds", "1"])
    assert freed_memory.main() == 0
    rows = capsys.readouterr().out.splitlines()[2:]
    assert [row.split(" | ")[:2] for row in rows] == [["| mlp", "HessianFree"], ["| mlp", "SGD"]]


def test_nothing_is_shown_where_the_ways_differ(monkeypatch, capsys):
    ends = iter(([1.0], [2.0]))
    monkeypatch.setattr(subprocess, "check_output", lambda command: json.dumps({"end": next(ends)}))
    monkeypatch.setattr(sys, "argv", ["freed_memory", "--networks", "mlp"])
    assert freed_memory.main() == 1
    assert "do not agree" in capsys.readouterr().err
