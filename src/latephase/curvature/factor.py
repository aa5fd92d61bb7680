"""The GGN as a product of matrices, G = RᵀR with R = √H J: what solvers that factorise start from."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from latephase.curvature.jacobian import NotBySampleError, by_batch

MOST_ENTRIES = 2**26  # of all blocks of H together

Tensors = list[Tensor]
Product = Callable[[Tensors], Tensors]


class Roots(NamedTuple):
    """√H of a loss that is a sum over samples: blocks S_n of shape (r, C) with S_nᵀS_n = H_n.

    Attributes:
        blocks: Shape (N, r, C), where C counts a sample's outputs.
        shapes: The outputs' shapes, (N, …) each.
        places: Where these outputs stand among all of them.
        chosen: Which samples of the batch they are, shape (N,); None for all.
    """

    blocks: Tensor
    shapes: list[torch.Size]
    places: list[int]
    chosen: Tensor | None = None

    @property
    def rows(self) -> int:
        """N · r."""
        return len(self.blocks) * self.blocks.shape[1]

    def cotangents(self) -> Tensors:
        """The rows of the blocks, cut into the outputs' shapes: (N, r, …) each."""
        n, r, _ = self.blocks.shape
        sizes = [shape[1:].numel() for shape in self.shapes]
        return [
            piece.reshape(n, r, *shape[1:])
            for piece, shape in zip(self.blocks.split(sizes, 2), self.shapes, strict=True)
        ]

    def times(self, z: Tensors) -> Tensor:
        """√H z for z shaped like all outputs; shape (N · r,)."""
        return torch.einsum("nrc,nc->nr", self.blocks, flat(self._own(z))).reshape(-1)

    def solve(self, slopes: Tensors) -> Tensor:
        """The ρ of least norm with √Hᵀρ nearest to the slopes; shape (N · r,)."""
        return (torch.linalg.pinv(self.blocks.mT) @ flat(self._own(slopes)).unsqueeze(2)).reshape(-1)

    def sample(self, share: float) -> Roots:
        """The same of some samples, always the same ones, so weighted that the sum is that of all in the mean.

        Args:
            share: Of the samples, in (0, 1].

        Returns:
            Roots of ⌈share · N⌉ samples.
        """
        n = len(self.blocks)
        count = min(n, math.ceil(share * n))
        order = torch.randperm(n, generator=torch.Generator().manual_seed(0))  # all choices are equally good
        chosen = order[:count].sort().values.to(self.blocks.device)
        shapes = [torch.Size((count, *shape[1:])) for shape in self.shapes]
        return Roots(self.blocks[chosen] * math.sqrt(n / count), shapes, self.places, chosen)

    def _own(self, z: Tensors) -> Tensors:
        return [z[place] if self.chosen is None else z[place][self.chosen] for place in self.places]


def roots(hvp: Product, outputs: Tensors) -> list[Roots]:
    """Return √H from products with H, one for each batch: outputs of another length are of other samples.

    Args:
        hvp: `w -> Hw`, both shaped like the outputs.
        outputs: The outputs, of shapes (N, …), where N may differ (residuals inside a region, and at its boundary).

    Returns:
        The blocks; directions in which no sample's loss is curved are left out.

    Raises:
        NotBySampleError: If an output has no samples, or H connects samples, is not positive semi-definite, or is too
            large.
    """
    found = [_roots_of(hvp, outputs, places) for places in by_batch(outputs)]
    if len(found) > 1:
        _check_apart(hvp, outputs, found)
    return found


def _check_apart(hvp: Product, outputs: Tensors, found: list[Roots]) -> None:
    """Raise NotBySampleError if H connects outputs of several batches: then √Hᵀ√H is not all of it."""
    probe = _probe(outputs)
    whole = hvp(probe)
    error, size = 0.0, 0.0
    for root in found:
        apart = torch.einsum("nrc,nr->nc", root.blocks, root.times(probe).view(root.blocks.shape[:2]))
        own = flat([whole[place] for place in root.places])
        error, size = max(error, float((own - apart).norm())), max(size, float(own.norm()))
    if not error <= torch.finfo(found[0].blocks.dtype).eps ** 0.5 * size:
        raise NotBySampleError("the loss is not a sum over samples: its Hessian connects outputs of several batches")


def _roots_of(hvp: Product, outputs: Tensors, places: list[int]) -> Roots:
    """√H of the outputs of one batch."""
    own = [outputs[place] for place in places]

    def product(w: Tensors) -> Tensor:
        given = dict(zip(places, w, strict=True))
        Hw = hvp([given[i] if i in given else torch.zeros_like(z) for i, z in enumerate(outputs)])
        return flat([Hw[place] for place in places])

    n, c = len(own[0]), sum(z[0].numel() for z in own)
    if n * c**2 > MOST_ENTRIES:
        raise NotBySampleError(f"{n} samples with {c} outputs each have too large a Hessian of the loss")
    H = torch.stack([product(_unit(own, i)) for i in range(c)], dim=2)
    probe = _probe(own)
    whole, apart = product(probe), torch.einsum("ncd,nd->nc", H, flat(probe))
    precision = torch.finfo(H.dtype).eps ** 0.5
    if not bool((whole - apart).norm() <= precision * whole.norm()):
        raise NotBySampleError("the loss is not a sum over samples: its Hessian connects their outputs")
    eigenvalues, V = torch.linalg.eigh(0.5 * (H + H.mT))
    largest = eigenvalues.abs().max()
    if bool(eigenvalues.min() < -precision * largest):
        raise NotBySampleError("the loss is not convex in the outputs")
    curved = (eigenvalues > torch.finfo(H.dtype).eps * c * largest).any(dim=0)
    blocks = eigenvalues.clamp(min=0.0).sqrt().unsqueeze(1) * V
    return Roots(blocks[:, :, curved].mT.reshape(n, int(curved.sum()), c), [z.shape for z in own], places)


def _probe(outputs: Tensors) -> Tensors:
    return [
        torch.randn(z.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(z) for z in outputs
    ]


def flat(z: Tensors) -> Tensor:
    """Outputs of shapes (N, …) as one matrix of shape (N, C), at least in float32."""
    matrix = torch.cat([piece.flatten(1) if piece.dim() > 1 else piece.unsqueeze(1) for piece in z], dim=1)
    return matrix.to(torch.promote_types(matrix.dtype, torch.float32))


def _unit(outputs: Tensors, entry: int) -> Tensors:
    """1 in the same entry of every sample, 0 elsewhere."""
    units = [torch.zeros(z.shape, dtype=z.dtype, device=z.device) for z in outputs]
    for unit in units:
        size = unit[0].numel()
        if 0 <= entry < size:
            unit.view(len(unit), -1)[:, entry] = 1.0
        entry -= size
    return units
