"""Residual images channels last, where all operations allow it."""

import torch
import torch.nn.functional as F  # noqa: N812
from tests.curvature.rewrite.graphs import inputs, outputs, run, traced

from latephase.curvature.rewrite.channels_last import lay_channels_last
from latephase.curvature.rewrite.split import boundary

draw = torch.Generator().manual_seed(0)
v, w, r = (torch.randn(shape, generator=draw) for shape in [(2, 3, 5, 5), (4, 3, 3, 3), (2, 4, 3, 3)])


def relaid(function):
    """The function's graph after the pass, which also returns the residuals, and how many these are."""
    graph = traced(function, v, w, r)
    vectors, products = inputs(graph)[:1], outputs(graph)
    residuals = lay_channels_last(graph, vectors, products, boundary(graph, vectors, products))
    graph.output_node().args = ([*products, *residuals],)
    return graph, len(residuals)


def convolved(v, w, r):
    return [(F.conv2d(v, w) * r.tanh()).view(2, -1)]


def gathered(v, w, r):
    return [F.conv2d(v, w).flatten().gather(0, (r > 0).flatten().long())]


def test_residual_images_lie_channels_last():
    graph, residuals = relaid(convolved)
    product, *constants = run(graph, v, w, r)
    assert residuals == len(constants) == 2
    assert all(constant.is_contiguous(memory_format=torch.channels_last) for constant in constants)
    torch.testing.assert_close(product, convolved(v, w, r)[0])


def test_where_positions_are_gathered_they_stay_as_they_were():
    graph, residuals = relaid(gathered)
    product, *constants = run(graph, v, w, r)
    assert residuals == len(constants) > 0
    assert all(constant.is_contiguous() for constant in constants)
    assert torch.equal(product, gathered(v, w, r)[0])
