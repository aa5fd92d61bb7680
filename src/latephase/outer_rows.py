"""Rows of a Jacobian as the outer products that they are sums of: for wide layers far fewer numbers, and far less work.

What one sample says about a weight is a sum of k outer products, one for each vector that went through the layer: one
in a plain network, four in one that takes two first derivatives and a Laplacian along. Their dot products are products
of dot products, (a bᵀ) · (c dᵀ) = (a · c)(b · d), so that RRᵀ takes k²(out + in) multiplications for each of its
entries where whole rows take out · in.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

AT_ONCE = 2**21  # products of dot products that are in the making at once: more than that leaves a CPU's caches


class Outer(NamedTuple):
    """M rows of which each is Σ left_i ⊗ right_i, a matrix read row by row.

    Attributes:
        left: Shape (M, k, out).
        right: Shape (M, k, in).
    """

    left: Tensor
    right: Tensor

    @property
    def size(self) -> int:
        """How long the rows are: out · in."""
        return self.left.shape[2] * self.right.shape[2]

    @property
    def terms(self) -> int:
        """The number k of products in each."""
        return self.left.shape[1]

    @property
    def work(self) -> int:
        """How many multiplications a product of two rows takes."""
        return self.terms**2 * (self.left.shape[2] + self.right.shape[2])

    def times(self, v: Tensor) -> Tensor:
        """The rows times v, shape (M,), for v of shape (out · in,)."""
        V = v.view(self.left.shape[2], self.right.shape[2])
        return (self.right @ V.T).mul_(self.left).sum((1, 2))

    def transposed_times(self, u: Tensor) -> Tensor:
        """The rows' transpose times u, shape (out · in,), for u of shape (M,)."""
        scaled = (self.left * u.view(-1, 1, 1)).flatten(0, 1)
        return (scaled.T @ self.right.flatten(0, 1)).flatten()

    def dense(self) -> Tensor:
        """The rows, shape (M, out · in)."""
        return torch.einsum("mko,mki->moi", self.left, self.right).flatten(1)

    def to(self, dtype: torch.dtype) -> Outer:
        """The same in another type."""
        return Outer(self.left.to(dtype), self.right.to(dtype))


class Whole(NamedTuple):
    """M rows as they are.

    Attributes:
        rows: Shape (M, p).
    """

    rows: Tensor

    @property
    def size(self) -> int:
        """How long they are."""
        return self.rows.shape[1]

    @property
    def work(self) -> int:
        """See `Outer`."""
        return self.size

    def times(self, v: Tensor) -> Tensor:
        """See `Outer`."""
        return self.rows @ v

    def transposed_times(self, u: Tensor) -> Tensor:
        """See `Outer`."""
        return self.rows.T @ u

    def dense(self) -> Tensor:
        """See `Outer`."""
        return self.rows

    def to(self, dtype: torch.dtype) -> Whole:
        """See `Outer`."""
        return Whole(self.rows.to(dtype))


Block = Whole | Outer


class OuterRows:
    """R of shape (M, P) for P parameters of which some have rows of outer products.

    Args:
        blocks: Its columns, parameter by parameter.

    >>> R = OuterRows([Outer(torch.ones(2, 1, 3), torch.ones(2, 1, 2)), Whole(torch.zeros(2, 1))])
    >>> R @ torch.ones(7), R.T @ torch.ones(2), R.lower_gram()[1, 0]
    (tensor([6., 6.]), tensor([2., 2., 2., 2., 2., 2., 0.]), tensor(6.))
    """

    def __init__(self, blocks: Sequence[Block]) -> None:
        self.blocks = list(blocks)
        self._sizes = [block.size for block in self.blocks]

    def __len__(self) -> int:
        return len(self.blocks[0][0])

    @property
    def share(self) -> float:
        """How many multiplications an entry of RRᵀ takes, over the P that whole rows would."""
        return sum(block.work for block in self.blocks) / sum(self._sizes)

    @property
    def dtype(self) -> torch.dtype:
        """The type of all its numbers."""
        return self.blocks[0][0].dtype

    def __matmul__(self, v: Tensor) -> Tensor:
        """Rv for v of shape (P,)."""
        found = v.new_zeros(len(self))
        for block, piece in zip(self.blocks, v.split(self._sizes), strict=True):
            found += block.times(piece)
        return found

    @property
    def T(self) -> Transposed:  # noqa: N802 — as tensors have it
        """Rᵀ, for products with vectors."""
        return Transposed(self)

    def lower_gram(self) -> Tensor:
        """RRᵀ, right in and below the diagonal, shape (M, M)."""
        whole = [block.rows for block in self.blocks if isinstance(block, Whole)]
        outer = sorted((block for block in self.blocks if isinstance(block, Outer)), key=lambda block: block.terms)
        K = lower_gram(torch.cat(whole, 1)) if whole else outer[0].left.new_zeros(len(self), len(self))
        for k, alike in groupby(outer, key=lambda block: block.terms):
            _add_lower_gram(K, [(block.left.flatten(0, 1), block.right.flatten(0, 1)) for block in alike], k)
        return K

    def dense(self) -> Tensor:
        """All of R."""
        return torch.cat([block.dense() for block in self.blocks], 1)

    def double(self) -> OuterRows:
        """The same in float64."""
        return self.to(torch.float64)

    def to(self, dtype: torch.dtype) -> OuterRows:
        """The same in another type."""
        return OuterRows([block.to(dtype) for block in self.blocks])

    def mul_(self, factor: float) -> OuterRows:
        """Multiply all by a number, in place."""
        for block in self.blocks:
            block[0].mul_(factor)
        return self


class Transposed:
    """Rᵀ."""

    def __init__(self, rows: OuterRows) -> None:
        self._rows = rows

    def __matmul__(self, u: Tensor) -> Tensor:
        """Rᵀu for u of shape (M,)."""
        return torch.cat([block.transposed_times(u) for block in self._rows.blocks])


Rows = Tensor | OuterRows


def stacked(pieces: Sequence[Rows]) -> Rows:
    """Return rows of several matrices as those of one; of a single one without a copy."""
    if len(pieces) == 1:
        return pieces[0]
    kinds = {tuple(map(type, piece.blocks)) if isinstance(piece, OuterRows) else None for piece in pieces}
    if None in kinds or len(kinds) > 1:
        return torch.cat([whole(piece) for piece in pieces])
    every = [piece.blocks for piece in pieces if isinstance(piece, OuterRows)]
    return OuterRows([_below_each_other(blocks) for blocks in zip(*every, strict=True)])


def whole(rows: Rows) -> Tensor:
    """Return rows as one matrix."""
    return rows.dense() if isinstance(rows, OuterRows) else rows


def lower_gram(A: Rows, blocks: int = 8) -> Tensor:
    """AAᵀ for A of shape (n, k), right in and below the diagonal: little more than half of the work of all of it."""
    if isinstance(A, OuterRows):
        return A.lower_gram()
    n = len(A)
    K = torch.zeros_like(A[:, :1]).expand(n, n).clone()
    for part in range(blocks):
        rows = slice(part * n // blocks, (part + 1) * n // blocks)
        torch.mm(A[rows], A[: rows.stop].T, out=K[rows, : rows.stop])
    return K


def _add_lower_gram(K: Tensor, factors: Sequence[tuple[Tensor, Tensor]], k: int) -> None:
    """Add what weights bring whose rows have k terms each, one below the other: shapes (M · k, out), (M · k, in)."""
    n = len(K)
    some = max(1, AT_ONCE // (n * k * k))
    for first in range(0, n, some):
        stop = min(n, first + some)
        own, before = slice(first * k, stop * k), slice(0, stop * k)
        products = K.new_zeros((stop - first) * k, stop * k)
        for left, right in factors:
            products.addcmul_(left[own] @ left[before].T, right[own] @ right[before].T)
        K[first:stop, :stop] += products.view(stop - first, k, stop, k).sum((1, 3))


def _below_each_other(blocks: Sequence[Block]) -> Block:
    """Rows of one parameter; where some have fewer terms, terms of zeros are added."""
    outer = [block for block in blocks if isinstance(block, Outer)]
    if not outer:
        return Whole(torch.cat([block.dense() for block in blocks]))
    most = max(block.terms for block in outer)
    filled = [[torch.nn.functional.pad(side, (0, 0, 0, most - block.terms)) for side in block] for block in outer]
    return Outer(*(torch.cat(sides) for sides in zip(*filled, strict=True)))
