"""Rows of the Jacobian, sample by sample: what a direct solve needs, and products alone cannot give cheaply.

A closure computes a batch at once. Where no sample's outputs depend on another sample, its program can be run again on
one sample alone: data tensors are cut along the batch, and lengths of the batch among the arguments become 1. Mapped
over all samples (`torch.func.vmap`), that yields all their gradients for the price of a few. Whether samples are
independent is not guessed but seen: whoever uses the rows holds them against products with the whole batch.
"""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, fx
from torch.fx.graph import CodeGen
from torch.nn.attention import SDPBackend, sdpa_kernel

from latephase.curvature.point import Point
from latephase.curvature.program import Program, mapped, needed
from latephase.curvature.pull_back import pull_back
from latephase.curvature.replay import leaves_where_needed, replay
from latephase.curvature.rewrite.nodes import outputs_of, value_of
from latephase.curvature.rewrite.outer_products import outer_products
from latephase.curvature.traced import traced
from latephase.outer_rows import Outer, OuterRows, Rows, Whole

CHUNK_BYTES = 2**24  # of rows that are in the making at once on a CPU: more than that leaves its caches
CHUNK_BYTES_OF_DEVICE = 2**28  # on others, which want work for all their cores
LARGE = 2**25  # entries of R, from which on it is worth seconds of tracing to do with fewer


class NotBySampleError(RuntimeError):
    """A program that does not treat samples apart; the message says what shows it."""


class Sampled(NamedTuple):
    """A program for one sample of a batch.

    Attributes:
        program: The program, as far as the outputs need it, with lengths of the batch replaced by 1.
        inputs: The tensors it takes from outside, with all samples.
        dims: The dimension of each along which samples lie; None where all samples share it.
        samples: N.
        places: Where its outputs stand among those of the whole program.
    """

    program: Program
    inputs: list[Tensor]
    dims: list[int | None]
    samples: int
    places: tuple[int, ...]


def by_batch(outputs: Sequence[Tensor]) -> list[list[int]]:
    """Return which outputs, of shapes (N, …), have a common N.

    Raises:
        NotBySampleError: If one has no first dimension, or nothing in it.
    """
    lengths = [z.shape[0] if z.dim() else 0 for z in outputs]
    if 0 in lengths:
        raise NotBySampleError(f"outputs of shapes {[tuple(z.shape) for z in outputs]} are not all of samples")
    return [[i for i, one in enumerate(lengths) if one == n] for n in dict.fromkeys(lengths)]


def sampled(point: Point, places: Sequence[int]) -> Sampled:
    """Return the program of a point for one sample.

    Args:
        point: The point.
        places: Which of its outputs; they have shapes (N, …) with a common N.

    Returns:
        The program; whether it computes what the whole batch does is still to be seen.

    Raises:
        NotBySampleError: If the program cannot be run again.
    """
    program = point.program
    if program.unseen is not None:
        raise NotBySampleError(f"{program.unseen} cannot be run again from a record of torch functions")
    n = len(point.outputs[places[0]])
    ends = [program.ends[1 + place] for place in places]

    def single(leaf: object) -> object:
        return 1 if type(leaf) is int and leaf == n else leaf

    calls = [
        call._replace(args=mapped(call.args, single), kwargs=mapped(call.kwargs, single))
        for call in needed(program.calls, ends)
    ]
    inputs = [tensor.detach() for tensor, _ in program.inputs]
    dims = [next((dim for dim, size in enumerate(t.shape) if size == n), None) for t in inputs]
    return Sampled(program._replace(calls=calls, ends=ends), inputs, dims, n, tuple(places))


def outputs_at(point: Point, tensors: Sequence[Tensor]) -> list[Tensor]:
    """The outputs of a point's program where the parameters are `tensors`, with the same random numbers."""
    program = point.program._replace(ends=point.program.ends[1:])
    calls = needed(program.calls, program.ends)
    with point.repeat.draws(), torch.no_grad():
        inputs = leaves_where_needed(program, [tensor for tensor, _ in program.inputs])
        return [z.detach() for z in replay(program._replace(calls=calls), tensors, inputs)]


def rows(one: Sampled, leaves: Sequence[Tensor], cotangents: Sequence[Tensor], chosen: Tensor | None = None) -> Rows:
    """Return Jᵀu for every sample n and each of its cotangents u_nk.

    Args:
        one: The program for one sample.
        leaves: The parameters, P entries in all.
        cotangents: For each output of shape (N, …) a tensor of shape (N, r, …).
        chosen: Which samples they belong to, where not to all: N counts these then, here and below.

    Returns:
        A matrix of shape (N · r, P), row nr + k for u_nk; where it is large, as `OuterRows`, if that is less work.

    Raises:
        NotBySampleError: If nothing that the program takes from outside has a dimension of N samples.
    """
    parameters = [p.detach() for p in leaves]
    cut = [(tensor, dim) for tensor, dim in zip(one.inputs, one.dims, strict=True) if dim is not None]
    if not cut:
        raise NotBySampleError(f"no tensor from outside the closure has a dimension of {one.samples} samples")
    if chosen is not None:
        cut = [(tensor.index_select(dim, chosen), dim) for tensor, dim in cut]

    samples, r = cotangents[0].shape[:2]
    P, dtype = sum(p.numel() for p in parameters), _common(parameters)
    backward = _traced_backward(one, parameters, cotangents, in_factors=samples * r * P >= LARGE)
    some_samples = torch.func.vmap(_of_sample(one, parameters, backward), in_dims=(0, [dim for _, dim in cut]))

    def pieces(numbers: int) -> Iterator[tuple[slice, list[Tensor]]]:
        """What some samples after the others make, that many numbers for each of their rows."""
        at_once = _at_once(cotangents[0], numbers * r)
        for first in range(0, samples, at_once):
            count = min(at_once, samples - first)
            slices = [tensor.narrow(dim, first, count) for tensor, dim in cut]
            found = some_samples([c[first : first + count] for c in cotangents], slices)
            yield slice(first * r, (first + count) * r), [piece.flatten(0, 1) for piece in found]

    # Attention by elementary operations: its fused kernels cannot be mapped.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        if backward is not None and any(backward.in_factors):
            return _in_factors([found for _, found in pieces(backward.numbers)], backward.in_factors, dtype)
        R = cotangents[0].new_empty(samples * r, P, dtype=dtype)
        for some, found in pieces(P):
            torch.cat([piece.flatten(1) for piece in found], 1, out=R[some])  # R is large: each number moves once
    return R


def _of_sample(
    one: Sampled, parameters: Sequence[Tensor], backward: Backward | None
) -> Callable[[Sequence[Tensor], Sequence[Tensor]], list[Tensor]]:
    """Return what maps a sample's cotangents, and its slices of what the program takes from outside, to rows."""

    def rows_of(cotangents: Sequence[Tensor], slices: Sequence[Tensor]) -> list[Tensor]:
        left = iter(slices)
        inputs = [t if d is None else next(left).unsqueeze(d) for t, d in zip(one.inputs, one.dims, strict=True)]
        if backward is not None:
            graph = backward.graph
            return torch.func.vmap(lambda *u: graph(*parameters, *inputs, *(c.unsqueeze(0) for c in u)))(*cotangents)
        pull = torch.func.vjp(lambda p: replay(one.program, p, inputs), parameters)[1]
        return torch.func.vmap(lambda *u: pull([c.unsqueeze(0) for c in u])[0])(*cotangents)

    return rows_of


def _at_once(like: Tensor, numbers: int) -> int:
    """How many samples with so many numbers each are in the making at once."""
    most = CHUNK_BYTES if like.device.type == "cpu" else CHUNK_BYTES_OF_DEVICE
    return max(1, most // max(numbers * like.element_size(), 1))


def _in_factors(chunks: Sequence[list[Tensor]], in_factors: Sequence[bool], dtype: torch.dtype) -> OuterRows:
    """Rows from gradients, some samples after the others; those in factors are two matrices each."""
    joined = iter([torch.cat(pieces).to(dtype) for pieces in zip(*chunks, strict=True)])
    return OuterRows([
        Outer(next(joined), next(joined)) if two else Whole(next(joined).flatten(1)) for two in in_factors
    ])  # fmt: skip


def _common(tensors: Sequence[Tensor]) -> torch.dtype:
    return functools.reduce(torch.promote_types, (tensor.dtype for tensor in tensors))


class Backward(NamedTuple):
    """Jᵀu of one sample as a graph in which its own derivatives are resolved.

    Attributes:
        graph: Maps parameters, inputs and u, all one by one, to Jᵀu, parameter by parameter.
        in_factors: Which of these are two matrices, see `outer_products`.
        numbers: How many it returns.
    """

    graph: fx.GraphModule
    in_factors: tuple[bool, ...]
    numbers: int


_backwards: OrderedDict[object, Backward | None] = OrderedDict()  # tracing takes seconds
REMEMBERED_BACKWARDS = 32


def differentiates(program: Program) -> bool:
    """Whether a program takes derivatives by `torch.autograd`, or prepares to, which has no place in `torch.func`."""
    return any(call.function in (torch.autograd.grad, Tensor.requires_grad_) for call in program.calls)


def _traced_backward(
    one: Sampled, parameters: Sequence[Tensor], cotangents: Sequence[Tensor], *, in_factors: bool
) -> Backward | None:
    """Jᵀu as a graph, for programs that take derivatives themselves, or where its factors are less work; else None."""
    resolves = differentiates(one.program)
    if not resolves and not in_factors:
        return None
    shapes = tuple((p.shape, p.dtype, p.device) for p in parameters)
    key = (one.program.fingerprint, one.places, shapes, in_factors)
    if key not in _backwards:
        _backwards[key] = _made_backward(one, parameters, cotangents, resolves=resolves, in_factors=in_factors)
        while len(_backwards) > REMEMBERED_BACKWARDS:
            _backwards.popitem(last=False)
    return _backwards[key]


def _made_backward(
    one: Sampled, parameters: Sequence[Tensor], cotangents: Sequence[Tensor], *, resolves: bool, in_factors: bool
) -> Backward | None:
    inputs = [t if d is None else t.narrow(d, 0, 1) for t, d in zip(one.inputs, one.dims, strict=True)]
    single = [c[:1, 0] for c in cotangents]

    def backward(parameters: Sequence[Tensor], inputs: Sequence[Tensor], u: Sequence[Tensor]) -> list[Tensor]:
        leaves = [p.detach().requires_grad_() for p in parameters]
        with torch.enable_grad():
            z = replay(one.program, leaves, leaves_where_needed(one.program, inputs))
        return pull_back(z, leaves, list(u))

    try:
        module = traced(backward, list(parameters), inputs, single)
    except (RuntimeError, ValueError, TypeError, IndexError, NotImplementedError):
        if resolves:
            raise
        return None  # `torch.func` may still map it
    factored = outer_products(module.graph) if in_factors else (False,) * len(parameters)
    if not resolves and not any(factored):
        return None
    module.graph.set_codegen(CodeGen())  # arguments one by one, and a list of what it now returns
    module.recompile()
    values = [value_of(output) for output in outputs_of(module.graph)]
    return Backward(module, factored, sum(value.numel() for value in values if value is not None))
