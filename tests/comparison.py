"""How results are compared, and how property tests run."""

from __future__ import annotations

import math

import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

TOLERANCE = 1e-9

# The same examples in every run. Fewer where an example is a whole step.
property_test = settings(max_examples=60, deadline=None, derandomize=True)
optimizer_property_test = settings(property_test, max_examples=15)

seeds = st.integers(0, 2**31 - 1)


def assert_close(a: Tensor, b: Tensor, tolerance: float = TOLERANCE) -> None:
    """Two tensors of the same shape agree to `tolerance` times the norm of the second."""
    assert a.shape == b.shape
    distance, norm = float((a - b).norm()), float(b.norm())
    assert distance <= tolerance * norm, f"they differ by {distance:.3g} where the norm is {norm:.3g}"


def normal_vector(size: int, seed: int) -> Tensor:
    """Standard normal entries, shape (size,)."""
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def symmetric_matrix(eigenvalues: Tensor, seed: int) -> Tensor:
    """A symmetric matrix with these eigenvalues and random eigenvectors."""
    size = len(eigenvalues)
    Q, _ = torch.linalg.qr(normal_vector(size * size, seed).view(size, size))
    A = Q @ torch.diag(eigenvalues) @ Q.T
    return (A + A.T) / 2


def definite_matrix(size: int, condition: float, seed: int) -> Tensor:
    """A symmetric positive definite matrix with eigenvalues from 1 / condition to 1."""
    return symmetric_matrix(torch.logspace(-math.log10(condition), 0.0, size, dtype=torch.float64), seed)
