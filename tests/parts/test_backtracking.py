"""CG-backtracking: beside the slow version, and what must hold for all losses."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests import reference
from tests.comparison import property_test

from latephase.parts import Backtracking, LastIterate

cg_backtracking, backtracking_grid = Backtracking(), Backtracking().wanted

GRID = [0, 1, 2, 3, 4, 6, 8, 10, 13, 17, 23, 30, 39]

# Few different values, so that losses are often equal.
loss_values = st.sampled_from([0.0, 1.0, 1.5, 2.0, 3.0, math.nan, math.inf])
losses = st.dictionaries(st.integers(0, 250), loss_values, min_size=1, max_size=12)


@property_test
@given(losses)
def test_as_the_slow_version(table: dict[int, float]):
    assert cg_backtracking(table.__getitem__, table) == reference.backtrack(table.__getitem__, sorted(table))


@property_test
@given(losses)
def test_result_is_not_worse_than_the_last_candidate_and_finite_if_any_is(table: dict[int, float]):
    chosen, last = table[cg_backtracking(table.__getitem__, table)], table[max(table)]
    assert not math.isfinite(last) or chosen <= last
    assert math.isfinite(chosen) == any(map(math.isfinite, table.values()))


@property_test
@given(losses)
def test_asks_for_each_loss_once_and_for_none_beyond_the_first_rise(table: dict[int, float]):
    asked = []

    def loss_at(n: int) -> float:
        asked.append(n)
        return table[n]

    chosen = cg_backtracking(loss_at, table)
    assert asked == sorted(table, reverse=True)[: len(asked)]
    # Below the chosen one, only the candidate that stopped the walk.
    if math.isfinite(table[chosen]):
        assert sum(n < chosen for n in asked) <= 1


@pytest.mark.parametrize(
    ("values", "chosen"),
    [
        ([5.0, 4.0, 3.0, 2.0, 1.0], 10),  # the last is the best
        ([5.0, 3.0, 1.0, 2.0, 4.0], 6),  # the walk ends at the minimum
        ([0.0, 3.0, 1.0, 2.0, 4.0], 6),  # … and does not see what lies beyond a rise
        ([1.0, 1.0, 1.0, 1.0, 1.0], 10),  # equal losses: the later iterate
        ([1.0, 2.0, 3.0, 4.0, 5.0], 1),
        ([5.0, 3.0, 4.0, math.inf, math.nan], 3),  # the late iterates overflow
        ([math.nan, math.nan, math.nan, math.nan, math.nan], 10),
    ],
)
def test_chosen_iterate(values: list[float], chosen: int):
    table = dict(zip([1, 3, 6, 8, 10], values, strict=True))
    assert cg_backtracking(table.__getitem__, table) == chosen
    assert cg_backtracking(table.__getitem__, reversed(list(table))) == chosen


def test_grid_is_that_of_martens():
    assert sorted(backtracking_grid(45)) == GRID
    assert sorted(backtracking_grid(39)) == GRID
    assert sorted(backtracking_grid(38)) == GRID[:-1]
    assert backtracking_grid(250) == {math.ceil(1.3**j) - 1 for j in range(22)}


def test_switched_off_it_takes_the_last_iterate_and_asks_for_no_loss():
    def loss_at(n: int) -> float:
        raise AssertionError(n)

    assert LastIterate()(loss_at, [3, 10, 1]) == 10


def test_candidates_lie_as_far_apart_as_gamma_says():
    assert sorted(Backtracking(gamma=2.0).wanted(40)) == [0, 1, 3, 7, 15, 31]
    assert LastIterate().wanted(40) == frozenset()


@pytest.mark.parametrize("gamma", [1.0, 0.5, math.nan, 0.0])
def test_bad_gamma(gamma: float):
    with pytest.raises(ValueError, match="gamma"):
        Backtracking(gamma)
