"""Diagonal preconditioners, beside a loop over the entries."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.comparison import assert_close, normal_vector, property_test, seeds

from latephase.parts.conjugate_gradients import cg
from latephase.parts.preconditioners import diagonal_preconditioner


@property_test
@given(seeds, st.floats(1e-6, 10.0), st.floats(0.1, 1.0))
def test_multiplies_by_a_power_of_the_damped_diagonal(seed: int, damping: float, exponent: float):
    diagonal, v = normal_vector(9, seed).square(), normal_vector(9, seed + 1)
    expected = torch.stack([x * (d + damping) ** -exponent for x, d in zip(v, diagonal, strict=True)])
    assert_close(diagonal_preconditioner(diagonal, damping, exponent)(v), expected)


def test_exponent_is_that_of_martens():
    diagonal, v = torch.tensor([15.0, 80.0]), torch.tensor([1.0, 1.0])
    assert_close(diagonal_preconditioner(diagonal, 1.0)(v), torch.tensor([1.0 / 8.0, 1.0 / 27.0]), 1e-6)


def test_each_entry_may_have_its_own_damping():
    diagonal, damping = normal_vector(9, 0).square(), normal_vector(9, 1).square()
    assert_close(
        diagonal_preconditioner(diagonal, damping, 0.5)(torch.ones_like(damping)), (diagonal + damping) ** -0.5
    )


def test_helps_where_the_diagonal_is_what_makes_the_system_hard():
    diagonal = torch.logspace(-4, 4, 40, dtype=torch.float64)
    A, b = diagonal.diag() + 1e-5 * torch.ones(40, 40, dtype=torch.float64), normal_vector(40, 0)
    M = diagonal_preconditioner(diagonal, 0.0, 1.0)
    assert cg(A.mv, b, M=M, martens_conv_crit=False).last < 0.2 * cg(A.mv, b, martens_conv_crit=False).last


def test_a_zero_without_damping_is_left_alone():
    M = diagonal_preconditioner(torch.tensor([4.0, 0.0]), 0.0, 0.5)
    assert_close(M(torch.ones(2)), torch.tensor([0.5, 1.0]))
