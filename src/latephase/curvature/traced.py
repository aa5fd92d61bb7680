"""Functions of tensors as graphs of elementary operations, derivatives that they take on the way included."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import fx
from torch.fx.experimental.proxy_tensor import make_fx

from latephase.curvature.dispatch_state import unchanged_dispatch_state
from latephase.curvature.rewrite.remove_writes import remove_writes


def traced(function: Callable[..., object], *args: object) -> fx.GraphModule:
    """Trace `function(*args)`, without values and without writes into arguments."""
    with unchanged_dispatch_state(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the closure has to say, it has said; the rest is PyTorch to itself
        module = make_fx(function, tracing_mode="fake")(*args)
        if not remove_writes(module.graph):
            module = make_fx(torch.func.functionalize(module, remove="mutations"), tracing_mode="fake")(*args)
    module.recompile()
    return module
