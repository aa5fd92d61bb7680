"""The Levenberg–Marquardt rule: beside the slow version, and what must always hold."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests import reference
from tests.comparison import property_test

from latephase.parts import ConstantDamping, LevenbergMarquardt
from latephase.parts.damping import clipped

levenberg_marquardt = LevenbergMarquardt()

any_number = st.one_of(st.floats(-10.0, 10.0), st.sampled_from([math.nan, math.inf, 0.0, -1e-300]))
decreases = st.floats(-10.0, -1e-6)
ratios = st.floats(-3.0, 3.0)
positive = st.floats(1e-10, 1e10)


@property_test
@given(any_number, any_number)
def test_as_the_slow_version(actual: float, predicted: float):
    assert levenberg_marquardt(actual, predicted) == reference.damping_factor(actual, predicted)


@property_test
@given(decreases, ratios)
def test_as_the_slow_version_between_the_thresholds(predicted: float, ratio: float):
    actual = ratio * predicted
    assert levenberg_marquardt(actual, predicted) == reference.damping_factor(actual, predicted)


@property_test
@given(decreases, ratios, ratios)
def test_factor_falls_with_the_reduction_ratio(predicted: float, one: float, other: float):
    low, high = sorted([one, other])
    assert levenberg_marquardt(low * predicted, predicted) >= levenberg_marquardt(high * predicted, predicted)


@property_test
@given(decreases, ratios, st.integers(-20, 20))
def test_factor_does_not_depend_on_the_unit_of_the_loss(predicted: float, ratio: float, power: int):
    unit = 2.0**power
    assert levenberg_marquardt(unit * ratio * predicted, unit * predicted) == levenberg_marquardt(
        ratio * predicted, predicted
    )


@pytest.mark.parametrize(
    ("ratio", "factor"),
    [
        (-1.0, 3 / 2),
        (0.0, 3 / 2),
        (0.24, 3 / 2),
        (0.25, 1.0),
        (0.5, 1.0),
        (0.75, 1.0),
        (0.76, 2 / 3),
        (1.0, 2 / 3),
        (5.0, 2 / 3),
    ],
)
def test_thresholds(ratio: float, factor: float):
    assert levenberg_marquardt(ratio * -4.0, -4.0) == factor


@pytest.mark.parametrize(
    ("actual", "predicted"),
    [(math.nan, -1.0), (math.inf, -1.0), (-1.0, math.nan), (-1.0, 0.0), (-1.0, 1.0), (1.0, 1.0)],
)
def test_what_is_no_number_or_no_decrease_is_a_failure(actual: float, predicted: float):
    assert levenberg_marquardt(actual, predicted) == 3 / 2


@property_test
@given(positive, positive, positive)
def test_clipped_damping_is_the_nearest_within_the_bounds(damping: float, one: float, other: float):
    bounds = min(one, other), max(one, other)
    assert bounds[0] <= clipped(damping, bounds) <= bounds[1]
    if bounds[0] <= damping <= bounds[1]:
        assert clipped(damping, bounds) == damping
    else:
        assert clipped(damping, bounds) == (bounds[0] if damping < bounds[0] else bounds[1])


def test_no_damping_stays_no_damping():
    assert clipped(0.0, (1e-8, 1e6)) == 0.0


@property_test
@given(any_number, any_number)
def test_switched_off_it_leaves_the_damping_alone(actual: float, predicted: float):
    assert ConstantDamping()(actual, predicted) == 1.0


def test_every_setting_counts():
    assert LevenbergMarquardt(lower=0.5)(-0.4, -1.0) == 3 / 2
    assert LevenbergMarquardt(upper=0.3)(-0.4, -1.0) == 2 / 3
    assert LevenbergMarquardt(increase=10.0)(0.0, -1.0) == 10.0
    assert LevenbergMarquardt(decrease=0.1)(-1.0, -1.0) == 0.1


@pytest.mark.parametrize(
    "settings",
    [{"lower": 0.8}, {"lower": 0.0}, {"increase": 0.9}, {"decrease": 1.1}, {"decrease": -1.0}, {"beyond": -0.1}],
)
def test_bad_settings(settings: dict[str, Any]):
    with pytest.raises(ValueError, match="|".join(settings)):
        LevenbergMarquardt(**settings)
