"""Promises on series whose law is known: what they were made of comes back."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latephase.finishing.promise import Growth, Sample, hope, promise

shares = st.floats(0.03, 1.0)


def series(score, *shares):
    return [Sample(share, score(share)) for share in shares]


@given(st.floats(0.1, 3.0), shares)
def test_a_power_law_goes_on(power, share):
    law = series(lambda x: x**-power, 0.005, 0.01, 0.02)
    assert promise(law, share, Growth.POWER) == pytest.approx(share**-power, rel=1e-9)


@given(shares)
def test_an_average_gains_what_is_left_of_the_noise(share):
    """Noise 1/n: of log scores that fall by 1/n the rest is known from two."""
    law = series(lambda x: math.exp(0.01 / x), 0.01, 0.02)
    assert promise(law, share, Growth.AVERAGE) == pytest.approx(math.exp(0.01 / share), rel=1e-9)


@given(st.sampled_from([0.25, 0.5, 1.0]), shares)
def test_three_lengths_show_the_power_of_a_schedule(power, share):
    law = [Sample(0.0, 9.0), *series(lambda x: math.exp(-(x**power)), 0.01, 0.02, 0.06)]
    expected = math.exp(-(max(share, 0.06) ** power))
    assert promise(law, share, Growth.LENGTH) == pytest.approx(expected, rel=1e-6)


@given(shares)
def test_two_lengths_are_taken_for_the_same_gain_at_each_doubling(share):
    two = [Sample(0.0, 9.0), *series(lambda x: x**-0.1, 0.01, 0.02)]
    assert promise(two, share, Growth.LENGTH) == pytest.approx(share**-0.1, rel=1e-9)


@given(shares)
def test_hope_is_a_gain_in_proportion_to_the_length(share):
    law = [Sample(0.0, 9.0), *series(lambda x: math.exp(-3.0 * x), 0.01, 0.02)]
    assert hope(law, share) == pytest.approx(math.exp(-3.0 * share), rel=1e-9)


def test_hope_of_what_does_not_gain_is_what_is_there():
    assert hope([Sample(0.0, 9.0), Sample(0.01, 1.0), Sample(0.02, 2.0)], 1.0) == 2.0


scores = st.lists(st.one_of(st.floats(-10.0, 10.0), st.just(math.nan), st.just(math.inf)), min_size=1, max_size=5)


@given(scores, st.sampled_from(Growth), shares)
def test_never_worse_than_the_best_so_far_and_never_nan(values, growth, share):
    samples = [Sample(0.01 * k, score) for k, score in enumerate(values)]
    best = min((score for score in values if math.isfinite(score)), default=math.inf)
    promised = promise(samples, share, growth)
    assert not math.isnan(promised)
    assert promised <= best


@given(st.sampled_from(Growth))
def test_what_grew_worse_promises_what_was_best(growth):
    assert promise([Sample(0.0, 1.0), Sample(0.01, 2.0), Sample(0.02, 3.0)], 1.0, growth) == 1.0


def test_scores_below_zero_are_differences():
    assert promise([Sample(0.01, -1.0), Sample(0.02, -2.0)], 0.08, Growth.POWER) == pytest.approx(-4.0)
