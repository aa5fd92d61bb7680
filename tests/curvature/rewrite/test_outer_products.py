"""Gradients that are sums of matrix products, returned as their factors."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tests.curvature.rewrite.graphs import run, traced
from torch import Tensor

from latephase.curvature.rewrite.outer_products import outer_products

WIDE = 80  # enough for two products to be worth it


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


a, b, c, d = (draw(1, WIDE, seed=seed) for seed in range(4))
SUMS: dict[str, Callable[..., Tensor]] = {
    "a product": lambda a, b, c, d: a.t() @ b,
    "turned": lambda a, b, c, d: (a.t() @ b).t(),
    "turned otherwise": lambda a, b, c, d: (a.t() @ b).permute(1, 0),
    "a sum": lambda a, b, c, d: a.t() @ b + c.t() @ d,
    "a sum of turned ones, turned": lambda a, b, c, d: ((a.t() @ b).t() + d.t() @ c).t(),
    "a product of two rows": lambda a, b, c, d: torch.cat([a, c]).t() @ torch.cat([b, d]),
}


@pytest.mark.parametrize("name", SUMS)
def test_a_sum_of_products_is_the_product_of_its_factors(name: str) -> None:
    expected = SUMS[name](a, b, c, d)
    graph = traced(lambda *x: [SUMS[name](*x), x[0] * 2.0], a, b, c, d)
    assert outer_products(graph) == (True, False)
    left, right, other = run(graph, a, b, c, d)
    torch.testing.assert_close(left.T @ right, expected)
    torch.testing.assert_close(other, 2.0 * a)
    assert len(left) <= 2


@pytest.mark.parametrize(
    "function",
    [
        lambda a, b, c, d: a.t() @ b - c.t() @ d,  # no sum
        lambda a, b, c, d: (a.t() @ b) * 2.0,
        lambda a, b, c, d: a.t() @ b + 1.0,
        lambda a, b, c, d: torch.add(a.t() @ b, c.t() @ d, alpha=2.0),
        lambda a, b, c, d: (a.t() @ b)[:, :40],
        lambda a, b, c, d: a.t() @ b[:, :1],  # too narrow to gain by it
        lambda a, b, c, d: torch.cat([a, c, b, d, a]).t() @ torch.cat([b, d, a, a, c]),  # too many products
        lambda a, b, c, d: a.t() @ torch.nn.functional.dropout(b),
    ],
)
def test_what_is_no_sum_of_few_products_or_is_drawn_stays(function: Callable[..., Tensor]) -> None:
    graph = traced(lambda *x: [function(*x)], a, b, c, d)
    before = str(graph)
    assert outer_products(graph) == (False,)
    assert str(graph) == before


def test_where_most_gradients_are_no_such_sums_all_stay() -> None:
    graph = traced(lambda a, b, c, d: [a.t() @ b, c.t() * d + 1.0, d.t() * c + 1.0], a, b, c, d)
    assert outer_products(graph) == (False, False, False)
