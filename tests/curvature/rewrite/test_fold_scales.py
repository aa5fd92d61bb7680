"""One product with two constants."""

import torch
from tests.curvature.rewrite.graphs import aten, inputs, run, traced

from latephase.curvature.rewrite.dependence import dependents
from latephase.curvature.rewrite.fold_scales import fold_scales

x, c, d = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))


def products(graph):
    """How often something that depends on the first input is multiplied."""
    return sum(node.target is aten.mul.Tensor for node in dependents(graph, inputs(graph)[:1]))


def test_a_vector_is_multiplied_once_by_two_constants():
    graph = traced(lambda x, c, d: [d * (x * c)], x, c, d)
    before = run(graph, x, c, d)
    assert products(graph) == 2
    fold_scales(graph, inputs(graph)[:1])
    assert products(graph) == 1
    torch.testing.assert_close(run(graph, x, c, d), before)


def test_a_product_that_somebody_else_uses_stays():
    def function(x, c, d):
        product = x * c
        return [d * product, product]

    graph = traced(function, x, c, d)
    fold_scales(graph, inputs(graph)[:1])
    assert products(graph) == 2
    assert all(map(torch.equal, run(graph, x, c, d), function(x, c, d)))
