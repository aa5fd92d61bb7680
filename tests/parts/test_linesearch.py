"""The line search: beside the slow version, and what must hold for all losses."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests import reference
from tests.comparison import property_test

from latephase.parts import Armijo, FullStep, LineSearchResult

armijo = Armijo()

FACTORS = [0.8**j for j in range(21)]

numbers = st.floats(-10.0, 10.0)
losses = st.lists(st.one_of(numbers, st.sampled_from([math.nan, math.inf])), min_size=21, max_size=21)
# Small ones beside large ones: the condition is sometimes strict and sometimes not.
slopes = st.one_of(numbers, st.floats(-1e-3, 1e-3))


class Losses:
    """f(β^j) is the j-th of the values; remembers what it was asked."""

    def __init__(self, values: list[float]) -> None:
        self.values = values
        self.asked: list[float] = []

    def __call__(self, factor: float) -> float:
        self.asked.append(factor)
        return self.values[round(math.log(factor, 0.8))]


@property_test
@given(losses, numbers, slopes)
def test_as_the_slow_version(values: list[float], loss_0: float, slope: float):
    factor, loss = armijo(Losses(values), loss_0, slope)
    want_factor, want_loss = reference.armijo_line_search(Losses(values), loss_0, slope)
    assert factor == pytest.approx(want_factor, rel=1e-12)
    assert loss == want_loss


@property_test
@given(losses, numbers, slopes)
def test_never_raises_the_loss_and_accepts_only_descent(values: list[float], loss_0: float, slope: float):
    loss_at = Losses(values)
    factor, loss = armijo(loss_at, loss_0, slope)
    if factor == 0.0:
        assert loss == loss_0
    else:
        assert loss == loss_at(factor) < loss_0
        assert loss <= loss_0 + 0.01 * factor * slope
        assert slope < 0.0


@property_test
@given(losses, numbers, slopes)
def test_tries_each_factor_once_and_stops_at_the_first_it_accepts(values: list[float], loss_0: float, slope: float):
    loss_at = Losses(values)
    factor, _ = armijo(loss_at, loss_0, slope)
    assert loss_at.asked == pytest.approx(FACTORS[: len(loss_at.asked)], rel=1e-12)
    assert len(loss_at.asked) == (21 if slope < 0.0 else 0) or loss_at.asked[-1] == factor


@property_test
@given(numbers, st.one_of(st.floats(0.0, 10.0), st.just(math.nan), st.just(math.inf)))
def test_a_direction_that_is_no_descent_is_not_evaluated(loss_0: float, slope: float):
    loss_at = Losses([-100.0] * 21)
    assert armijo(loss_at, loss_0, slope) == (0.0, loss_0)
    assert loss_at.asked == []


@pytest.mark.parametrize("minimum", [2.0, 0.45, 0.1, 0.012])
def test_on_a_parabola(minimum: float):
    # f falls from 0 to 2·minimum. Armijo with c = 0.01 leaves out the last hundredth of that.
    factor, loss = armijo(lambda a: (a - minimum) ** 2, minimum**2, -2.0 * minimum)
    allowed = 2.0 * minimum * 0.99
    assert factor == pytest.approx(max(f for f in FACTORS if f <= allowed), rel=1e-12)
    assert loss == (factor - minimum) ** 2


def test_a_small_decrease_is_not_significant():
    # The slope promises 1 and the tenth part of c is kept.
    assert armijo(lambda a: 1.0 - 0.001 * a, 1.0, -1.0) == (0.0, 1.0)
    assert armijo(lambda a: 1.0 - 0.011 * a, 1.0, -1.0) == LineSearchResult(1.0, 1.0 - 0.011)


def test_a_slope_lost_in_rounding_does_not_let_an_equal_loss_through():
    assert armijo(lambda a: 1.0, 1.0, -1e-30) == (0.0, 1.0)


def test_goes_past_losses_that_are_not_finite():
    values = [math.nan, math.inf, 0.5, *[0.0] * 18]
    factor, loss = armijo(Losses(values), 1.0, -0.1)
    assert factor == pytest.approx(0.64)
    assert loss == 0.5


def test_minus_infinity_is_no_decrease():
    assert armijo(lambda factor: -math.inf if factor == 1.0 else -factor, 0.0, -1.0) == LineSearchResult(0.8, -0.8)


@pytest.mark.parametrize("loss", [0.5, 2.0])
def test_switched_off_it_takes_the_whole_step(loss: float):
    assert FullStep()(lambda factor: loss * factor, 1.0, 5.0) == (1.0, loss)


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_switched_off_it_still_refuses_a_loss_that_is_not_finite(loss: float):
    factor, reported = FullStep()(lambda factor: loss, 1.0, -1.0)
    assert factor == 0.0
    assert not math.isfinite(reported)


def test_every_setting_counts():
    assert Armijo(beta=0.5)(lambda a: (a - 0.4) ** 2, 0.16, -0.8).factor == 0.5
    assert Armijo(c=0.9)(lambda a: 1.0 - 0.5 * a, 1.0, -1.0) == (0.0, 1.0)
    asked = []
    Armijo(max_reductions=3)(lambda a: asked.append(a) or 2.0, 1.0, -1.0)
    assert len(asked) == 4


@pytest.mark.parametrize("settings", [{"c": 0.0}, {"c": 1.0}, {"beta": 1.0}, {"beta": 0.0}, {"max_reductions": 0}])
def test_bad_settings(settings: dict[str, Any]):
    with pytest.raises(ValueError, match=next(iter(settings))):
        Armijo(**settings)
