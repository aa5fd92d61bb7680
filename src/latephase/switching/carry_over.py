"""What Adam has learnt about the curvature, for the first damping of what follows it."""

from __future__ import annotations

import torch
from torch import Tensor

MOMENTS = "exp_avg_sq"


def mean_second_moment(optimizer: torch.optim.Optimizer) -> float | None:
    """Return the mean over all parameters of Adam's second moments, corrected for their start at 0.

    That of a gradient's squares estimates, from below, the mean of the empirical Fisher matrix's diagonal, and with it
    the GGN's: a damping of that size is neither lost beside the curvature nor above all of it. Measured in
    docs/switching.md.

    Args:
        optimizer: Any; those of Adam's family have such moments.

    Returns:
        The mean; None where there are no moments, or no positive finite mean.

    >>> p = torch.nn.Parameter(torch.zeros(2))
    >>> adam = torch.optim.Adam([p])
    >>> p.grad = torch.tensor([1.0, 3.0])
    >>> adam.step()
    >>> round(mean_second_moment(adam), 6)
    5.0
    >>> mean_second_moment(torch.optim.SGD([p], lr=0.1)) is None
    True
    """
    total, count = 0.0, 0
    for group in optimizer.param_groups:
        for p in group["params"]:
            state = optimizer.state.get(p, {})
            if isinstance(state.get(MOMENTS), Tensor) and "step" in state:
                correction = 1.0 - group["betas"][1] ** float(state["step"])
                total += float(state[MOMENTS].double().sum()) / correction
                count += state[MOMENTS].numel()
    mean = total / count if count else 0.0
    return mean if 0.0 < mean < float("inf") else None
