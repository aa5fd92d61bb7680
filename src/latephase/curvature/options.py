"""How products are computed, where there is a choice."""

from __future__ import annotations

from typing import NamedTuple

import torch


class Options(NamedTuple):
    """How products are computed.

    Attributes:
        product_dtype: Type in which matrix products and convolutions work within a curvature product, such as
            ``torch.bfloat16``; None for the network's own. Everything else keeps its type.
        compile: Whether ``torch.compile`` compiles J v and Jᵀu: takes long at first use, pays on large problems.
    """

    product_dtype: torch.dtype | None = None
    compile: bool = False


DEFAULT_OPTIONS = Options()
