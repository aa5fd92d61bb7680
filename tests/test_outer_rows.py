"""Rows of outer products beside the whole matrices that they stand for."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from latephase import outer_rows
from latephase.outer_rows import Block, Outer, OuterRows, Whole, lower_gram, stacked, whole
from tests.comparison import property_test


def some(seed: int) -> Callable[..., Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)


def rows(seed: int, m: int, terms: tuple[int, ...] = (2, 0, 3, 2)) -> OuterRows:
    """Four weights of which `terms` says how many products each has; 0 are whole rows."""
    draw = some(seed)
    shapes = [(3, 4), (2, 1), (1, 5), (4, 3)]
    blocks: list[Block] = [
        Outer(draw(m, k, a), draw(m, k, b)) if k else Whole(draw(m, a * b))
        for k, (a, b) in zip(terms, shapes, strict=True)
    ]
    return OuterRows(blocks)


@property_test
@given(st.integers(0, 1000), st.integers(1, 6), st.integers(1, 9))
def test_they_are_the_matrix_that_each_row_adds_up_to(seed: int, m: int, k: int):
    draw = some(seed)
    left, right, v, u = draw(m, k, 3), draw(m, k, 4), draw(14), draw(m)
    R = OuterRows([Outer(left, right), Whole(draw(m, 2))])
    by_hand = torch.stack([
        torch.cat([sum(torch.outer(left[i, j], right[i, j]) for j in range(k)).flatten(), R.blocks[1].dense()[i]])
        for i in range(m)
    ])  # fmt: skip
    torch.testing.assert_close(R.dense(), by_hand)
    torch.testing.assert_close(R @ v, by_hand @ v)
    torch.testing.assert_close(R.T @ u, by_hand.T @ u)
    torch.testing.assert_close(R.lower_gram().tril(), (by_hand @ by_hand.T).tril())
    assert len(R) == m


@pytest.mark.parametrize("at_once", [1, 40, 2**21])
def test_weights_with_unlike_numbers_of_products_and_any_number_of_them_at_once(
    at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outer_rows, "AT_ONCE", at_once)
    R = rows(0, 11)
    torch.testing.assert_close(R.lower_gram().tril(), (R.dense() @ R.dense().T).tril())


def test_without_whole_rows() -> None:
    R = rows(0, 5, (2, 2, 2, 1))
    torch.testing.assert_close(R.lower_gram().tril(), (R.dense() @ R.dense().T).tril())


def test_its_share_of_multiplications() -> None:
    """Per entry of RRᵀ: k² (out + in) for products, and as many as there are numbers for whole rows."""
    assert rows(0, 5).share == (4 * 7 + 2 + 9 * 6 + 4 * 7) / (12 + 2 + 5 + 12)


def test_types_and_scales() -> None:
    R = rows(0, 5)
    single = R.to(torch.float32)
    assert (single.dtype, single.double().dtype, R.dtype) == (torch.float32, torch.float64, torch.float64)
    torch.testing.assert_close(single.dense(), R.dense().float())
    before = R.dense()
    torch.testing.assert_close(R.mul_(3.0).dense(), 3.0 * before)


@pytest.mark.parametrize("others", [(2, 0, 3, 2), (1, 0, 4, 2), (2, 1, 3, 2)])
def test_below_each_other(others: tuple[int, ...]) -> None:
    """Those with fewer products, too; and those that are whole where others are not."""
    upper, lower = rows(0, 4), rows(1, 3, others)
    found = stacked([upper, lower])
    assert isinstance(found, OuterRows) == (others[1] == 0)
    torch.testing.assert_close(whole(found), torch.cat([upper.dense(), lower.dense()]))


def test_below_whole_ones() -> None:
    upper, lower = rows(0, 4), rows(1, 3).dense()
    torch.testing.assert_close(stacked([upper, lower]), torch.cat([upper.dense(), lower]))


def test_a_single_one_is_not_copied() -> None:
    R, A = rows(0, 4), some(0)(4, 3)
    assert stacked([R]) is R
    assert stacked([A]) is A
    assert whole(A) is A


@property_test
@given(st.integers(0, 1000), st.integers(1, 40), st.integers(1, 20))
def test_lower_gram_is_right_in_and_below_the_diagonal(seed: int, n: int, k: int):
    A = some(seed)(n, k)
    torch.testing.assert_close(lower_gram(A).tril(), (A @ A.T).tril())
