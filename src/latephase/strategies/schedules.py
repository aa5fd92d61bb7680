"""Learning rate schedules: by what a strategy's learning rate is multiplied over the budget."""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.optim.lr_scheduler import ReduceLROnPlateau

Factor = Callable[[float, Tensor | None], float]
"""Maps the fraction of the budget spent and the loss of the last step (None before the first) to a factor."""

Schedule = Callable[[], Factor]
"""Starts a schedule."""


def constant() -> Factor:
    """Keep the learning rate: the baseline."""
    return lambda spent, loss: 1.0


def tenth() -> Factor:
    """Return the factor that divides the learning rate by ten at the checkpoint."""
    return lambda spent, loss: 0.1


def cosine() -> Factor:
    """Return the factors that let the learning rate fall to zero along half a cosine.

    >>> factor = cosine()
    >>> factor(0.0, None), factor(1.0, None)
    (1.0, 0.0)
    """
    return lambda spent, loss: 0.5 * (1 + math.cos(math.pi * spent))


PERIODS = 20  # of the budget, after each of which the mean loss is looked at
PATIENCE = 5  # periods without progress before a reduction, so that at most three fit: 3 · 6 ≤ 20 < 4 · 6


def plateau() -> Factor:
    """Return factors that divide it by ten whenever the loss has stalled (Tatzel et al. 2022, Section 3.2)."""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    scheduler = ReduceLROnPlateau(optimizer, factor=0.1, patience=PATIENCE)
    losses: list[Tensor] = []
    period = 0

    def factor(spent: float, loss: Tensor | None) -> float:
        nonlocal period
        losses.extend([] if loss is None else [loss])
        if losses and int(spent * PERIODS) > period:
            period = int(spent * PERIODS)
            scheduler.step(float(torch.stack(losses).double().nanmean()))
            losses.clear()
        return float(optimizer.param_groups[0]["lr"])

    return factor


SCHEDULES: dict[str, Schedule] = {"constant": constant, "tenth": tenth, "cosine": cosine, "plateau": plateau}
