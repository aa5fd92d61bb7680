import math

import pandas as pd
import pytest

from latephase.study.runs.divergence import has_diverged, where_diverged


@pytest.mark.parametrize("start", [0.0, 1e-9, 2.3, -2.3, 1e12, -1e12])
def test_what_is_not_finite_or_absurd_has_diverged(start):
    scale = abs(start) + 1
    for loss in (start, 0.0, 1e5 * scale, -1e5 * scale):
        assert not has_diverged(loss, start)
    for loss in (1e7 * scale, -1e7 * scale, 1e298, -1e298, math.inf, -math.inf, math.nan):
        assert has_diverged(loss, start)


def test_the_largest_numbers_do_not_overflow():
    assert not has_diverged(1e308, 1.7e308)
    assert has_diverged(1.0, math.nan)
    assert has_diverged(math.inf, math.inf)


def test_every_curve_is_held_against_its_own_start():
    losses = {"a": [1.0, 1e5, 1e9], "b": [1e9, 1e12, math.nan], "c": [math.nan, 1.0]}
    rows = [{"id": name, "train_loss": loss} for name, curve in losses.items() for loss in curve]
    curves = pd.DataFrame(rows, index=range(100, 108))
    found = where_diverged(curves)
    assert list(found) == [False, False, True, False, False, True, True, True]
    assert list(found.index) == list(curves.index)
    assert where_diverged(curves.iloc[:0]).empty
