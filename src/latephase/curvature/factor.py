"""The GGN as a product of matrices, G = RᵀR with R = √H J: what solvers that factorise start from."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from latephase.curvature.jacobian import NotBySampleError, common_batch

MOST_ENTRIES = 2**26  # of all blocks of H together

Tensors = list[Tensor]
Product = Callable[[Tensors], Tensors]


class Roots(NamedTuple):
    """√H of a loss that is a sum over samples: blocks S_n of shape (r, C) with S_nᵀS_n = H_n.

    Attributes:
        blocks: Shape (N, r, C), where C counts a sample's outputs.
        shapes: The outputs' shapes, (N, …) each.
    """

    blocks: Tensor
    shapes: list[torch.Size]

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
        """√H z for z shaped like the outputs; shape (N · r,)."""
        return torch.einsum("nrc,nc->nr", self.blocks, flat(z)).reshape(-1)

    def solve(self, slopes: Tensors) -> Tensor:
        """The ρ of least norm with √Hᵀρ nearest to the slopes; shape (N · r,)."""
        return (torch.linalg.pinv(self.blocks.mT) @ flat(slopes).unsqueeze(2)).reshape(-1)


def roots(hvp: Product, outputs: Tensors) -> Roots:
    """Return √H from products with H.

    Args:
        hvp: `w -> Hw`, both shaped like the outputs.
        outputs: The outputs, with a common first dimension N.

    Returns:
        The blocks; directions in which no sample's loss is curved are left out.

    Raises:
        NotBySampleError: If the outputs have no common batch, or H connects samples, is not positive semi-definite, or
            is too large.
    """
    n, c = common_batch(outputs), sum(z[0].numel() for z in outputs)
    if n * c**2 > MOST_ENTRIES:
        raise NotBySampleError(f"{n} samples with {c} outputs each have too large a Hessian of the loss")
    H = torch.stack([flat(hvp(_unit(outputs, i))) for i in range(c)], dim=2)
    probe = [
        torch.randn(z.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(z) for z in outputs
    ]
    whole, apart = flat(hvp(probe)), torch.einsum("ncd,nd->nc", H, flat(probe))
    precision = torch.finfo(H.dtype).eps ** 0.5
    if not bool((whole - apart).norm() <= precision * whole.norm()):
        raise NotBySampleError("the loss is not a sum over samples: its Hessian connects their outputs")
    eigenvalues, V = torch.linalg.eigh(0.5 * (H + H.mT))
    largest = eigenvalues.abs().max()
    if bool(eigenvalues.min() < -precision * largest):
        raise NotBySampleError("the loss is not convex in the outputs")
    curved = (eigenvalues > torch.finfo(H.dtype).eps * c * largest).any(dim=0)
    blocks = eigenvalues.clamp(min=0.0).sqrt().unsqueeze(1) * V
    return Roots(blocks[:, :, curved].mT.reshape(n, int(curved.sum()), c), [z.shape for z in outputs])


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
