"""Reverse differentiation of several tensors by several others."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Tensors = list[Tensor]


def pull_back(
    values: Sequence[Tensor], inputs: Sequence[Tensor], cotangents: Sequence[Tensor], *, create_graph: bool = False
) -> Tensors:
    """Return ∂⟨values, cotangents⟩/∂inputs; values without a graph are constants."""
    return filled(_pulled_back(values, inputs, cotangents, create_graph), inputs)


def partial_derivatives(
    values: Sequence[Tensor], inputs: Sequence[Tensor], cotangents: Sequence[Tensor], *, create_graph: bool = False
) -> Tensors:
    """Return ∂⟨values, cotangents⟩/∂inputs with each input varied alone, also where inputs were made from one another.

    What comes from autograd for an input h is the total derivative: besides h itself it varies every other input z that
    was computed from h. With the partial derivatives p, total_h = p_h + Σ_z (∂z/∂h)ᵀ p_z, solved from the latest input
    back to the earliest.
    """
    totals = _pulled_back(values, inputs, cotangents, create_graph)
    partials: list[Tensor | None] = list(totals)
    order = sorted(range(len(inputs)), key=lambda i: _age(inputs[i]))
    for place, i in reversed(list(enumerate(order))):
        later = [j for j in order[place + 1 :] if partials[j] is not None]
        if not later:
            continue
        weights = [partials[j] for j in later]
        (through,) = _pulled_back([inputs[j] for j in later], [inputs[i]], weights, create_graph)  # type: ignore[arg-type]
        if through is not None:
            partials[i] = -through if totals[i] is None else totals[i] - through  # type: ignore[operator]
    return filled(partials, inputs)


def filled(tensors: Sequence[Tensor | None], like: Sequence[Tensor]) -> Tensors:
    """The tensors, with zeros in the place of those that are None."""
    return [torch.zeros_like(x) if t is None else t for t, x in zip(tensors, like, strict=True)]


def _pulled_back(
    values: Sequence[Tensor], inputs: Sequence[Tensor], cotangents: Sequence[Tensor], create_graph: bool
) -> Sequence[Tensor | None]:
    pairs = [(x, c) for x, c in zip(values, cotangents, strict=True) if x.requires_grad]
    if not pairs:
        return [None] * len(inputs)
    tensors, weights = zip(*pairs, strict=True)
    return torch.autograd.grad(
        tensors, inputs, weights, retain_graph=True, create_graph=create_graph, allow_unused=True
    )


def _age(tensor: Tensor) -> int:
    """Larger for what was computed later; what was computed from another tensor is younger than that."""
    return -1 if tensor.grad_fn is None else int(tensor.grad_fn._sequence_nr())
