"""Trial points: for a while the parameters hold another vector than θ."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from latephase.parameters import Parameters


@contextmanager
def at_trial_point(parameters: Parameters, trial: Tensor, theta: Tensor) -> Iterator[None]:
    """Within the context the parameters hold `trial`; afterwards `theta`, both of shape (P,).

    Everything sees the trial point that sees the parameters: modules, custom Functions, TorchScript.
    """
    try:
        put(parameters, trial)
        yield
    finally:
        put(parameters, theta)


def put(parameters: Parameters, theta: Tensor) -> None:
    """Copy a vector of shape (P,) into the parameters unseen by autograd, so that graphs of products stay valid."""
    if parameters.tensors:
        torch._foreach_copy_([p.data for p in parameters.tensors], parameters.split(theta))
