"""What runs once per point, and what runs in every product."""

import torch
from tests.curvature.rewrite.graphs import aten, count, inputs, outputs, run, traced

from latephase.curvature.rewrite.split import boundary, extract

v, x = torch.randn(2, 6, generator=torch.Generator().manual_seed(0))


def test_what_does_not_depend_on_the_vector_is_computed_once_for_all():
    graph = traced(lambda v, x: [v * x.exp().sin(), v.cumsum(0)], v, x)
    (vector, point), products = inputs(graph), outputs(graph)
    residuals = boundary(graph, [vector], products)
    assert [node.target for node in residuals] == [aten.sin.default]
    primal, linear = extract(graph, [point], residuals), extract(graph, [vector, *residuals], products)
    assert count(primal.__self__.graph, aten.mul.Tensor) == 0
    assert count(linear.__self__.graph, aten.exp.default) == 0
    assert all(map(torch.equal, linear(v, *primal(x)), run(graph, v, x)))


def test_an_output_that_does_not_depend_on_the_vector_is_a_residual():
    graph = traced(lambda v, x: [x.exp()], v, x)
    (vector, point), products = inputs(graph), outputs(graph)
    residuals = boundary(graph, [vector], products)
    assert residuals == list(products)
    linear = extract(graph, [vector, *residuals], [*products, None])
    assert linear(v, *extract(graph, [point], residuals)(x))[1] is None
