"""Killed with -9 at random moments, a study ends as if it had not been."""

import subprocess
import sys
from pathlib import Path

import pandas as pd
from tests.study.toy import REFERENCE

from latephase.study.runs.store import Store


def studied(folder, kills):
    script = Path(__file__).with_name("killed.py")
    command = [sys.executable, str(script), str(folder), str(kills), REFERENCE]
    return subprocess.run(
        command, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[3]
    ).stdout.split()


def test_killed_at_twenty_random_moments(tmp_path):
    studied(tmp_path / "undisturbed", kills=0)
    assert studied(tmp_path / "killed", kills=20)[:20].count("killed") >= 5  # towards the end nothing is left to do
    one, other = Store(tmp_path / "undisturbed"), Store(tmp_path / "killed")
    assert one.ids() == other.ids()
    assert len(one.ids()) == 1 + 2 * 3 * 2
    for run in one.ids():
        assert one.status(run).state == other.status(run).state == "complete"
        pd.testing.assert_frame_equal(
            one.curve(run).drop(columns="seconds"), other.curve(run).drop(columns="seconds"), check_exact=True
        )
        pd.testing.assert_frame_equal(one.steps(run), other.steps(run), check_exact=True)
