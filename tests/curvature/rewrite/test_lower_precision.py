"""Costly operations in a narrower type."""

import torch
from tests.curvature.rewrite.graphs import inputs, run, traced

from latephase.curvature.rewrite.lower_precision import lower_precision

v, W = torch.randn(2, 5, 5, generator=torch.Generator().manual_seed(0))


def test_matrix_products_work_in_the_narrow_type_and_nothing_else_does():
    graph = traced(lambda v, W: [(v @ W).sin()], v, W)
    lower_precision(graph, inputs(graph)[:1], torch.bfloat16)
    (result,) = run(graph, v, W)
    assert torch.equal(result, (v.bfloat16() @ W.bfloat16()).float().sin())
    assert not torch.equal(result, (v @ W).sin())


def test_what_does_not_depend_on_the_vectors_keeps_its_type():
    graph = traced(lambda v, W: [v + W @ W], v, W)
    lower_precision(graph, inputs(graph)[:1], torch.bfloat16)
    assert torch.equal(run(graph, v, W)[0], v + W @ W)


def test_an_operation_with_several_results_returns_to_its_type():
    def function(g, x, w):
        ones, zeros = [1, 1], [0, 0]
        wanted = [True, True, True]
        return list(torch.ops.aten.convolution_backward(g, x, w, [2], ones, zeros, ones, False, zeros, 1, wanted))

    tensors = torch.randn(1, 2, 4, 4), torch.randn(1, 3, 4, 4), torch.randn(2, 3, 1, 1)
    graph = traced(function, *tensors)
    lower_precision(graph, inputs(graph)[:1], torch.bfloat16)
    exact, narrow = function(*tensors), run(graph, *tensors)
    assert all(result.dtype is torch.float32 for result in narrow)
    torch.testing.assert_close(narrow, exact, rtol=0.1, atol=0.1)
    assert not torch.equal(narrow[0], exact[0])
