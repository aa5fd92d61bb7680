"""The flat view of the parameters: θ as one vector, read, written and split into shaped views."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor


class Parameters:
    """The trainable parameters of an optimizer's groups as one vector θ of length P.

    The order is that of the groups and of the parameters in each. Frozen parameters
    (`requires_grad=False`) are left out, so the view is made afresh at every step.

    Args:
        groups: An optimizer's `param_groups`.

    Attributes:
        tensors: The trainable parameters, P entries in all.
        numel: P.
        device: The one device they live on; the CPU when there are none.
        dtype: The dtype of every flat vector, the widest of the parameters' own and at least
            float32, so that dot products over P entries keep their meaning with half-precision weights.

    Raises:
        ValueError: If the parameters are on several devices, or two of them share memory.
        TypeError: If one of them is complex, or not a plain strided tensor.
        RuntimeError: If one of them has a hook that runs after gradients are accumulated, which never happens here.
    """

    def __init__(self, groups: Sequence[dict[str, Any]]) -> None:
        self._groups = [(group, [p for p in group["params"] if p.requires_grad]) for group in groups]
        self.tensors: list[Tensor] = [p for _, members in self._groups for p in members]
        self._sizes = [p.numel() for p in self.tensors]
        self.numel = sum(self._sizes)
        self.device = self.tensors[0].device if self.tensors else torch.device("cpu")
        self.dtype = torch.float32
        for p in self.tensors:
            _check_supported(p, self.device)
            self.dtype = torch.promote_types(self.dtype, p.dtype)
        _check_apart(self.tensors)

    def read(self) -> Tensor:
        """Return a copy of θ, shape (P,)."""
        return self.join(self.tensors)

    def write(self, theta: Tensor) -> None:
        """Copy the vector `theta`, shape (P,), into the parameters, keeping their storage and strides."""
        if not self.tensors:
            return
        with torch.no_grad():
            # One call, so that an interrupt falls before or after it and never between two layers.
            torch._foreach_copy_(self.tensors, self.split(theta))

    def split(self, vector: Tensor) -> list[Tensor]:
        """Cut `vector`, shape (P,), into tensors with the parameters' shapes and dtypes."""
        pieces = vector.split(self._sizes)
        return [piece.view(p.shape).to(p.dtype) for piece, p in zip(pieces, self.tensors, strict=True)]

    def join(self, tensors: Iterable[Tensor | None]) -> Tensor:
        """Return the tensors, shaped like the parameters, as one new vector of shape (P,); None means zeros."""
        flat = []
        for p, tensor in zip(self.tensors, tensors, strict=True):
            if tensor is None:
                tensor = torch.zeros_like(p, memory_format=torch.contiguous_format)
            dense = tensor.to_dense() if tensor.is_sparse else tensor
            flat.append(dense.detach().as_subclass(Tensor).reshape(-1).to(self.dtype))
        return torch.cat(flat) if flat else torch.zeros(0, dtype=self.dtype, device=self.device)

    def spread(self, key: str) -> float | Tensor:
        """Return the groups' option `key`: one number where all agree, else a vector of shape (P,)."""
        values = [(float(group[key]), sum(p.numel() for p in members)) for group, members in self._groups]
        if all(value == values[0][0] for value, _ in values):
            return values[0][0]
        return torch.cat([torch.full((n,), value, dtype=self.dtype, device=self.device) for value, n in values])


def refuse_sharded(tensors: Iterable[Tensor]) -> None:
    """Raise TypeError if one is spread over several processes."""
    for p in tensors:
        if type(p.data).__name__ == "DTensor":  # its own module takes long to import
            raise TypeError(
                f"a parameter of shape {tuple(p.shape)} is a DTensor, as FSDP2 and tensor parallelism make them, but θ "
                'must be whole on each rank: leave the parameters as they are, with HessianFree(process_group="world")'
            )


def _check_supported(p: Tensor, device: torch.device) -> None:
    if p.device != device:
        raise ValueError(
            f"all trainable parameters must be on one device, but one is on {device} and one on {p.device}; "
            "move the model, or give each device its own optimizer"
        )
    if p.is_complex():
        raise TypeError(
            f"a parameter of shape {tuple(p.shape)} has the complex dtype {p.dtype}; "
            "store its real and imaginary parts (torch.view_as_real) as a real parameter"
        )
    if p.layout != torch.strided:
        raise TypeError(f"a parameter of shape {tuple(p.shape)} has layout {p.layout}; it must be torch.strided")
    if getattr(p, "_post_accumulate_grad_hooks", None):
        raise RuntimeError(
            f"a parameter of shape {tuple(p.shape)} has a hook from register_post_accumulate_grad_hook, which would "
            "never run: a step accumulates no gradients in .grad; remove it, or use register_hook, which applies to "
            "gradients and products alike"
        )


def _check_apart(tensors: Sequence[Tensor]) -> None:
    """Raise ValueError if two parameters share memory: each would be moved, and the second move would win."""
    by_storage: dict[int, list[Tensor]] = {}
    for p in tensors:
        if p.device.type != "meta" and p.numel() > 0:
            by_storage.setdefault(p.untyped_storage().data_ptr(), []).append(p)
    for members in by_storage.values():
        if _overlap(members):
            shapes = " and ".join(str(tuple(p.shape)) for p in members)
            raise ValueError(
                f"parameters of shapes {shapes} share memory without being one tensor (by .data, or expanded?); "
                "tie them by assigning the Parameter itself: b.weight = a.weight"
            )


def _overlap(members: Sequence[Tensor]) -> bool:
    """Whether some place of a common storage belongs to more than one of its views."""
    places = sorted([(p.storage_offset(), p.storage_offset() + _extent(p)) for p in members])
    if any(p.numel() > _extent(p) for p in members):
        return True
    if all(before[1] <= after[0] for before, after in pairwise(places)):
        return False
    owners = torch.zeros(max(end for _, end in places), dtype=torch.int8, device=members[0].device)
    for p in members:
        owners.as_strided(p.shape, p.stride(), p.storage_offset()).add_(1)
    return int(owners.max()) > 1


def _extent(p: Tensor) -> int:
    return 1 + sum((size - 1) * stride for size, stride in zip(p.shape, p.stride(), strict=True))
