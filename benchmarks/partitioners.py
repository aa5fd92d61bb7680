"""``python -m benchmarks.partitioners``: our split of a traced graph beside PyTorch's partitioners.

Each takes the same graph, and computes J v, Jᵀu and H w in one part; the results are compared before anything is timed.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, fx, nn
from torch._functorch.partitioners import default_partition, min_cut_rematerialization_partition
from torch.fx.node import Node

from benchmarks.networks import NETWORKS, Task
from benchmarks.timing import TOLERANCE, ratios, seconds
from latephase.curvature.engines.linearize import Merged, merge
from latephase.curvature.math_kernels import math_kernels
from latephase.curvature.point import Point, evaluate
from latephase.curvature.rewrite.dependence import dependencies, dependents
from latephase.curvature.rewrite.split import boundary, extract
from latephase.parameters import Parameters
from latephase.transaction import Transaction

ROUNDS = 20
CPU = torch.device("cpu")
Partition = Callable[..., tuple[fx.GraphModule, fx.GraphModule]]


class Split(NamedTuple):
    """A graph in two parts: what runs once per point, and what runs in every product."""

    primal: fx.GraphModule
    products: fx.GraphModule
    residuals: list[Tensor]

    def multiply(self, vectors: list[Tensor]) -> list[Tensor]:
        """All products."""
        return self.products(*self.residuals, *vectors)

    def row(self, name: str, ratio: float) -> str:
        """The split's row of the table."""
        operations = [sum(n.op == "call_function" for n in part.graph.nodes) for part in (self.primal, self.products)]
        size = sum(r.numel() * r.element_size() for r in self.residuals) / 1e6
        return f"| {name} | {operations[0]} | {operations[1]} | {size:.1f} MB | {ratio:.2f} |"


def ours(merged: Merged, primals: list[Tensor]) -> Split:
    """Split by what depends on the vectors."""
    residuals = boundary(merged.graph, merged.vectors, merged.products)
    primal = extract(merged.graph, merged.primals, [*merged.values, *residuals])
    products = extract(merged.graph, [*residuals, *merged.vectors], merged.products)
    return Split(primal.__self__, products.__self__, primal(*primals)[len(merged.values) :])


def partitioned(merged: Merged, primals: list[Tensor], partition: Partition, *, tagged: bool) -> Split:
    """Let a partitioner split the graph."""
    count = len(merged.values)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        primal, products = partition(joint(merged, tagged=tagged), None, num_fwd_outputs=count)
    return Split(primal, products, list(primal(*primals)[count:]))


def joint(merged: Merged, *, tagged: bool) -> fx.GraphModule:
    """The graph as a partitioner knows it: inputs named primals and tangents, outputs of the forward pass first.

    Args:
        merged: The graph.
        tagged: Whether what does not depend on the vectors stands first and is marked as forward.
    """
    graph, copies = fx.Graph(), {}
    for kind, nodes in (("primals", merged.primals), ("tangents", merged.vectors)):
        copies.update({node: graph.placeholder(f"{kind}_{i}") for i, node in enumerate(nodes)})
    for node, copy in copies.items():
        copy.meta.update(node.meta)
    linear, outputs = dependents(merged.graph, merged.vectors), [*merged.values, *merged.products]
    needed = dependencies(outputs)
    nodes = [n for n in merged.graph.nodes if n.op == "call_function" and n in needed]
    for node in sorted(nodes, key=linear.__contains__) if tagged else nodes:
        copies[node] = graph.node_copy(node, copies.__getitem__)
        if tagged and node not in linear:
            copies[node].meta["partitioner_tag"] = "is_forward"
    graph.output([copies[node] if isinstance(node, Node) else node for node in outputs])
    return fx.GraphModule(nn.Module(), graph)


def compare(task: Task) -> Iterator[str]:
    """The rows of one network's table."""
    point = point_of(task)
    with math_kernels():
        merged = merge(point)
    primals = [t.detach() for t in (*point.leaves, *(tensor for tensor, _ in point.program.inputs))]
    splits = {
        "by dependence (ours)": ours(merged, primals),
        "default": partitioned(merged, primals, default_partition, tagged=False),
        "default, sorted and tagged by us": partitioned(merged, primals, default_partition, tagged=True),
        "min-cut": partitioned(merged, primals, min_cut_rematerialization_partition, tagged=False),
    }
    vectors = [torch.randn_like(t) for t in (*point.leaves, *point.outputs, *point.outputs)]
    expected = splits["by dependence (ours)"].multiply(vectors)
    for name, split in splits.items():
        for mine, theirs in zip(expected, split.multiply(vectors), strict=True):
            assert (mine - theirs).norm() <= TOLERANCE * mine.norm(), f"{name} gives other products"
    times: dict[str, list[float]] = {name: [] for name in splits}
    for _ in range(ROUNDS):
        for name, split in splits.items():
            times[name].append(seconds(CPU, lambda split=split: split.multiply(vectors)))
    for name, split in splits.items():
        yield split.row(name, ratios(times[name], times["by dependence (ours)"])["median"])


def point_of(task: Task) -> Point:
    """Where the graph is traced."""
    parameters = Parameters([{"params": task.params}])
    transaction = Transaction(parameters)
    point = evaluate(task.closure(), parameters, transaction.repeat())
    transaction.commit()
    return point


def main() -> None:
    """Print a table per network."""
    torch.set_num_threads(1)
    for name in ("3c3d", "transformer_math"):
        print(f"\n{name}\n\n| split | per point | per product | residuals | time |\n|---|--:|--:|--:|--:|")  # noqa: T201
        for row in compare(Task(NETWORKS[name], CPU)):
            print(row, flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
