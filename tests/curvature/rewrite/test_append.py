"""Merged traces compute nothing twice."""

import pytest
import torch
from tests.curvature.rewrite.graphs import aten, count, empty, run, traced

from latephase.curvature.rewrite.append import append

x = torch.linspace(-1.0, 1.0, 6)


def merged(*functions):
    graph, nodes = empty(x)
    graph.output([output for function in functions for output in append(graph, traced(function, x), nodes)])
    return graph


def test_what_is_computed_already_is_shared():
    graph = merged(lambda x: [x.exp() * 2.0], lambda x: [x.exp() + 1.0, x.exp() * 3.0])
    assert count(graph, aten.exp.default) == 1
    assert count(graph, aten.mul.Tensor) == 2
    for result, expected in zip(run(graph, x), [x.exp() * 2.0, x.exp() + 1.0, x.exp() * 3.0], strict=True):
        assert torch.equal(result, expected)


def test_a_result_that_is_written_to_is_not_shared():
    graph = merged(lambda x: [x.exp().mul_(2.0)], lambda x: [x.exp()])
    assert count(graph, aten.exp.default) == 2
    assert torch.equal(run(graph, x)[1], x.exp())


def test_random_numbers_are_shared_in_their_order():
    def two(x):
        return [torch.rand_like(x) - torch.rand_like(x)]

    graph = merged(two, two)
    assert count(graph, aten.rand_like.default) == 2
    first, second = run(graph, x)
    assert first.any()
    assert torch.equal(first, second)


def test_traces_that_draw_differently_are_refused():
    with pytest.raises(RuntimeError, match="different random numbers"):
        merged(lambda x: [torch.rand_like(x)], lambda x: [torch.randn_like(x)])


def test_views_of_the_whole_are_left_out():
    graph = merged(lambda x: [x.detach().sin()], lambda x: [x.sin()])
    assert count(graph, aten.detach.default) == 0
    assert count(graph, aten.sin.default) == 1


def test_a_constant_of_the_trace_is_refused():
    with pytest.raises(RuntimeError, match="cannot be traced back"):
        merged(lambda x: [x + torch.tensor(1.0)])
