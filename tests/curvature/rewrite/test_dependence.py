"""What depends on what."""

import torch
from tests.curvature.rewrite.graphs import inputs, outputs, traced

from latephase.curvature.rewrite.dependence import dependencies, dependents

x, y = torch.ones(2, 3)


def test_what_depends_on_what():
    graph = traced(lambda x, y: [x.exp() * y, y.sin().cos()], x, y)
    (first, second), (product, cosine) = inputs(graph), outputs(graph)
    exponential, (sine,) = product.all_input_nodes[0], cosine.all_input_nodes
    assert dependents(graph, [first]) - {graph.output_node()} == {first, exponential, product}
    assert dependencies([cosine]) == {second, sine, cosine}
    assert dependencies([cosine], given=[sine]) == {cosine}
    assert dependencies([product, None]) >= {first, second}
