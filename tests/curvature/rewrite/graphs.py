"""Small graphs of traces, run before and after a pass."""

import torch
from torch import fx, nn
from torch.fx.experimental.proxy_tensor import make_fx

from latephase.curvature.rewrite.nodes import placeholder

aten = torch.ops.aten


def traced(function, *tensors):
    """The graph of a function that returns a list, without values."""
    return make_fx(function, tracing_mode="fake")(*tensors).graph


def empty(*tensors):
    """A graph with inputs like the tensors and nothing else, and its inputs."""
    graph = fx.Graph()
    return graph, [placeholder(graph, f"x_{i}", tensor) for i, tensor in enumerate(tensors)]


def inputs(graph):
    return [node for node in graph.nodes if node.op == "placeholder"]


def outputs(graph):
    return graph.output_node().args[0]


def run(graph, *tensors):
    """What a graph computes."""
    graph.lint()
    return fx.GraphModule(nn.Module(), graph)(*tensors)


def count(graph, target):
    """How often a graph does an operation whose result is used."""
    return sum(node.target is target and bool(node.users) for node in graph.nodes)
