"""Writes become operations that return something new, or are seen to matter."""

import torch
from tests.curvature.rewrite.graphs import aten, count, run, traced

from latephase.curvature.rewrite.remove_writes import remove_writes

x = torch.linspace(-1.0, 1.0, 6)


def test_a_write_becomes_an_operation_that_returns_something_new():
    graph = traced(lambda x: [(x * 2.0).relu_() + 1.0], x)
    before = run(graph, x)
    assert count(graph, aten.relu_.default) == 1
    assert remove_writes(graph)
    assert count(graph, aten.relu_.default) == 0
    assert count(graph, aten.relu.default) == 1
    assert torch.equal(run(graph, x)[0], before[0])


def test_a_write_that_is_seen_through_a_view_stays():
    def function(x):
        y = x * 2.0
        view = y.view(2, 3)
        y.add_(1.0)
        return [view]

    graph = traced(function, x)
    assert not remove_writes(graph)
    assert torch.equal(run(graph, x)[0], (x * 2.0).view(2, 3) + 1.0)


def test_numbers_may_be_drawn_into_a_tensor_of_their_own():
    graph = traced(lambda x: [torch.empty_like(x).uniform_() + x], x)
    assert remove_writes(graph)
    assert count(graph, aten.uniform_.default) == 1


def test_numbers_may_not_be_drawn_into_an_argument():
    graph = traced(lambda x: [x.uniform_() + 1.0], x)
    assert not remove_writes(graph)
