"""Sums with zeros that a trace is known to contain."""

import torch
from tests.curvature.rewrite.graphs import aten, count, empty, run, traced

from latephase.curvature.rewrite.append import append

x = torch.linspace(-1.0, 1.0, 6)


def simplified(function):
    graph, nodes = empty(x)
    graph.output(append(graph, traced(function, x), nodes))
    return graph


def test_a_sum_with_zero_is_its_other_term():
    graph = simplified(lambda x: [x.sin() + torch.zeros_like(x), torch.zeros_like(x) * x + x.cos()])
    assert count(graph, aten.add.Tensor) == 0
    assert all(map(torch.equal, run(graph, x), [x.sin(), x.cos()]))


def test_zero_is_known_through_views_and_products():
    graph = simplified(lambda x: [x.view(2, 3) @ x.view(3, 2) + torch.zeros_like(x).view(2, 3) @ x.view(3, 2)])
    assert count(graph, aten.add.Tensor) == 0
    assert torch.equal(run(graph, x)[0], x.view(2, 3) @ x.view(3, 2))


def test_a_sum_that_changes_the_shape_or_may_not_be_zero_stays():
    graph = simplified(lambda x: [x + torch.zeros_like(x).expand(2, 6), x + torch.zeros_like(x).exp()])
    assert count(graph, aten.add.Tensor) == 2
    assert all(map(torch.equal, run(graph, x), [x.expand(2, 6), x + 1.0]))
