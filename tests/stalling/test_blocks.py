"""Blocks: what they say of the last part of a series is what the series itself says."""

from __future__ import annotations

import math
from statistics import fmean, stdev

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.comparison import normal_vector, property_test, seeds

from latephase.stalling.blocks import CAPACITY, Blocks, fall, mean


def filled(samples):
    blocks = Blocks()
    for sample in samples:
        blocks.add(sample)
    return blocks


@property_test
@given(seeds, st.integers(1, 1500), st.floats(0.05, 1.0))
def test_blocks_are_means_of_the_series(seed, length, part):
    series = normal_vector(length, seed).tolist()
    blocks = filled(series)
    assert blocks.size == 2 ** max(0, math.floor(math.log2(length / (CAPACITY / 2))))
    full = length // blocks.size
    window = series[(full - math.ceil(part * full)) * blocks.size : full * blocks.size]
    expected = [fmean(window[i : i + blocks.size]) for i in range(0, len(window), blocks.size)]
    assert blocks.window(part) == pytest.approx(expected, abs=1e-12)


@property_test
@given(st.integers(64, 5000))
def test_there_are_always_few_blocks_and_enough(length):
    assert CAPACITY // 2 <= len(filled([1.0] * length).window(1.0)) < CAPACITY


@property_test
@given(seeds, st.integers(30, 1500), st.sampled_from([0.25, 0.5, 1.0]))
def test_batches_are_the_latest_and_at_least_root_n_long(seed, length, part):
    series = normal_vector(length, seed).tolist()
    blocks = filled(series)
    batches = blocks.batch_means(part)
    n = len(blocks.window(part)) * blocks.size
    long = math.ceil(math.sqrt(n) / blocks.size) * blocks.size
    end = length // blocks.size * blocks.size
    expected = [fmean(series[i : i + long]) for i in range(end - len(batches) * long, end, long)]
    assert batches == pytest.approx(expected, abs=1e-12)
    assert len(batches) == n // long // 2 * 2  # as many as there are, to two halves


@property_test
@given(seeds, st.integers(2, 40))
def test_mean_and_error_are_those_of_the_textbook(seed, count):
    batches = normal_vector(count, seed).tolist()
    assert mean(batches) == pytest.approx((fmean(batches), stdev(batches) / math.sqrt(count)))


@property_test
@given(seeds, st.integers(2, 20))
def test_fall_is_the_difference_of_the_halves(seed, half):
    first, second = normal_vector(half, seed).tolist(), normal_vector(half, seed + 1).tolist()
    error = math.sqrt((stdev(first) ** 2 + stdev(second) ** 2) / half)
    assert fall(first + second) == pytest.approx((fmean(first) - fmean(second), error))


def test_error_of_batches_covers_an_autocorrelated_series():
    """An autoregression with coefficient 0.9: the error of its mean is √19 times that of independent samples."""
    errors, means = [], []
    for seed in range(40):
        state, series = 0.0, []
        for noise in normal_vector(4000, seed).tolist():
            state = 0.9 * state + noise
            series.append(state)
        estimate = mean(filled(series).batch_means(1.0))
        errors.append(estimate.error)
        means.append(estimate.mean)
    truth = 10.0 / math.sqrt(4000)
    assert stdev(means) == pytest.approx(truth, rel=0.3)
    assert fmean(errors) == pytest.approx(truth, rel=0.2)


@pytest.mark.parametrize(("function", "batches"), [(mean, [1.0]), (fall, [1.0, 2.0]), (fall, [1.0] * 5)])
def test_too_few_batches_are_refused(function, batches):
    with pytest.raises(ValueError, match="batches, not"):
        function(batches)


def test_state_goes_on_to_the_bit():
    series = normal_vector(1000, 0).tolist()
    undisturbed, resumed = filled(series), Blocks()
    resumed.load(filled(series[:333]).state())
    for sample in series[333:]:
        resumed.add(sample)
    assert resumed.window(1.0) == undisturbed.window(1.0)
    assert resumed.state()["partial"] == undisturbed.state()["partial"]
