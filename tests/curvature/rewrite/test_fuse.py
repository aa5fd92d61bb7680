"""Products and sums in one operation."""

import torch
from tests.curvature.rewrite.graphs import aten, count, run, traced

from latephase.curvature.rewrite.fuse import fuse

a, b, c, d = torch.randn(4, 5, 5, generator=torch.Generator().manual_seed(0))


def fused(function, *tensors):
    graph = traced(function, *tensors)
    before = run(graph, *tensors)
    fuse(graph)
    torch.testing.assert_close(run(graph, *tensors), before)
    return graph


def test_a_product_and_a_sum_are_one_operation():
    graph = fused(lambda a, b, c: [a * b + c, c + a @ b], a, b, c)
    assert count(graph, aten.add.Tensor) == count(graph, aten.mul.Tensor) == count(graph, aten.mm.default) == 0
    assert count(graph, aten.addcmul.default) == count(graph, aten.addmm.default) == 1


def test_two_products_and_something_small_are_two_operations():
    graph = fused(lambda a, b, c, d, r: [a * b + c * d + r], a, b, c, d, d[0])
    assert count(graph, aten.add.Tensor) == count(graph, aten.mul.Tensor) == 0
    assert count(graph, aten.addcmul.default) == 2


def test_a_product_that_somebody_else_uses_stays():
    def function(a, b, c):
        product = a * b
        return [product + c, product]

    assert count(fused(function, a, b, c), aten.addcmul.default) == 0


def test_types_are_not_mixed():
    graph = fused(lambda a, b, c: [a * b + c], a, b, c.double())
    assert count(graph, aten.add.Tensor) == 1
