"""The search along a line: both conditions, the bracket, the first step, and when there is none."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.comparison import property_test

from latephase.parts.wolfe import DECREASE, MOST, SLOPE, Place, first_step, weak_wolfe


def line(f: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor], Place]:
    """A function of one number as a place."""

    def at(p: torch.Tensor) -> Place:
        x = p.clone().requires_grad_()
        value = f(x).sum()
        return Place(p, value.item(), torch.autograd.grad(value, x)[0])

    return at


ZERO, ONE = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
FUNCTIONS = {
    "parabola": lambda x: (x - 3.0).square(),
    "narrow": lambda x: 1000.0 * (x - 0.01).square(),
    "quartic": lambda x: (x - 2.0) ** 4,
    "exponential": lambda x: torch.exp(3.0 * x) - 4.0 * x,
    "wave": lambda x: torch.sin(3.0 * x) - x,
}


@property_test
@given(st.sampled_from(sorted(FUNCTIONS)), st.floats(1e-3, 30.0))
def test_both_conditions_hold(name: str, first: float):
    at = line(FUNCTIONS[name])
    here = at(ZERO)
    d = -torch.sign(here.g)
    slope = float(here.g @ d)
    found = weak_wolfe(here, d, at, first)
    assert found.place is not None
    assert found.place.loss <= here.loss + DECREASE * found.step * slope + 1e-12
    assert float(found.place.g @ d) >= SLOPE * slope
    torch.testing.assert_close(found.place.p, found.step * d)
    assert 1 <= found.gradients < MOST


def test_a_first_step_that_will_do_is_the_only_one():
    at = line(FUNCTIONS["parabola"])
    assert weak_wolfe(at(ZERO), ONE, at, 2.0).gradients == 1


def test_the_cubic_finds_the_minimum_of_a_parabola():
    """Its bracket is from 0 to 100, of which a bisection would need six halves."""
    at = line(FUNCTIONS["parabola"])
    found = weak_wolfe(at(ZERO), ONE, at, 100.0)
    assert found.gradients <= 3


def test_what_is_not_finite_is_too_far():
    near = line(lambda x: (x - 1.0).square())

    def at(p: torch.Tensor) -> Place:
        return near(p) if float(p) < 1.5 else Place(p, math.inf, math.nan * p)

    found = weak_wolfe(at(ZERO), ONE, at, 64.0)
    assert found.place is not None
    assert found.place.loss < 1.0


def test_without_descent_there_is_nothing_to_search():
    at = line(FUNCTIONS["parabola"])
    assert weak_wolfe(at(ZERO), -ONE, at) == (None, 0.0, 0)


def test_where_the_slope_is_false_it_ends():
    at = line(lambda x: x.square() + 1.0)
    found = weak_wolfe(Place(ZERO, 1.0, -ONE), ONE, at)
    assert found.place is None
    assert found.gradients == MOST


@pytest.mark.parametrize(("before", "expected"), [(None, 1.0), (100.0, 1.0), (9.6, 0.202), (9.0, 1.0), (8.0, 1.0)])
def test_the_first_step_promises_what_the_last_one_gave(before: float | None, expected: float):
    here = line(FUNCTIONS["parabola"])(ZERO)  # 9, and falls by 6
    assert math.isclose(first_step(here, ONE, before), expected, rel_tol=1e-9)
