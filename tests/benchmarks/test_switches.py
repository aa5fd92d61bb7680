"""The benchmark of what a switch carries over, on a tiny scale."""

import math
import sys

from benchmarks import switches

from latephase.study.problems import find_problem


def test_only_what_is_carried_over_differs():
    setting = switches.Setting("friedman1", 1, 64, 1)
    data = find_problem("friedman1").load_data(None)
    (before, plain, _), (same, carried, end) = (
        switches.run(setting, data, 0, carry_over=carry_over) for carry_over in (False, True)
    )
    assert before == same
    assert plain == 1.0
    assert 0.0 < carried < 1.0
    assert math.isfinite(end)


def test_the_table_has_a_row_for_each(monkeypatch, capsys):
    monkeypatch.setattr(switches, "SETTINGS", (switches.Setting("friedman1", 1, None, 1),))
    monkeypatch.setattr(sys, "argv", ["switches", "--seeds", "1"])
    switches.main()
    assert capsys.readouterr().out.splitlines()[2].startswith("| friedman1 | 1 | ")
