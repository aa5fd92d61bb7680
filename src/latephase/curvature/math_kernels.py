"""Kernels that have all derivatives, for closures whose fused kernels lack one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from latephase.curvature.point import Point


@contextmanager
def math_kernels() -> Iterator[None]:
    """Compute attention and recurrent layers by elementary operations, which have all derivatives."""
    mkldnn = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch._C._set_mkldnn_enabled(mkldnn)


def evaluated_with_math_kernels(point: Point) -> Point:
    """Run the closure of ``point`` again, with kernels that have all derivatives."""
    with math_kernels():
        return point.evaluated_again()
