"""Arithmetic on vectors of length P, with no more memory than the result takes."""

from __future__ import annotations

import torch
from torch import Tensor


def plus_scaled(x: Tensor, factor: float | Tensor, v: Tensor) -> Tensor:
    """Return x + factor · v for vectors of shape (P,); the factor is a number, or a vector for each entry its own."""
    return torch.addcmul(x, factor, v) if isinstance(factor, Tensor) else torch.add(x, v, alpha=factor)
