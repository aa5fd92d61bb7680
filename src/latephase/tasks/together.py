"""Several processes that train together, each on its share of the examples: gradients are means over all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from latephase.distributed import ALONE, Ranks, mean


def mean_gradient(ranks: Ranks, parameters: Sequence[Tensor], gradient: Callable[[], Tensor]) -> Tensor:
    """Let the parameters' gradients be the means over all ranks.

    Args:
        ranks: The processes, all of which call this with parameters of the same shapes.
        parameters: Their `grad` is set; where no rank has one it stays None.
        gradient: Sets this rank's, and returns its loss, a tensor of one number without a graph.

    Returns:
        The mean of the losses.

    Raises:
        RankError: If another rank failed to compute its gradient.
    """
    if ranks is ALONE:
        return gradient()

    loss = torch.empty(())

    def flat() -> Tensor:
        nonlocal loss
        loss = gradient()
        pieces = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        has_one = pieces[0].new_tensor([p.grad is not None for p in parameters])
        return torch.cat([has_one, *(piece.flatten() for piece in pieces)])

    has_one, *gradients = (ranks.sum("a gradient", flat) / ranks.count).split([
        len(parameters), *(p.numel() for p in parameters)
    ])  # fmt: skip
    for p, of_all, some in zip(parameters, gradients, has_one.tolist(), strict=True):
        p.grad = of_all.view_as(p).to(p.dtype) if some else None
    return loss.new_tensor(mean(ranks, "a loss", lambda: float(loss)))
