"""When a loss has run away: what a training or a run has come to then is no use to anybody."""

import math

import pandas as pd

_LIMIT = 1e6


class DivergedError(ArithmeticError):
    """A training has diverged. The message says when, how far, and which setting to change."""


def highest_loss(start: float) -> float:
    """Return up to which absolute value a loss that started at ``start`` counts as under way: a million (|start| + 1).

    To be finite is not enough: in float64 a loss can grow to 1e298. The factor lies far above what a training comes
    back from (spikes, a bad step: some thousands) and far below what overflows. One that diverges grows by a factor
    with every step, so it hardly matters where in between. The 1 is for losses that started at next to nothing.

    >>> highest_loss(2.0), highest_loss(-2.0), highest_loss(1e-9)
    (3000000.0, 3000000.0, 1000000.001)
    """
    return _LIMIT * (abs(start) + 1.0)


def has_diverged(loss: float, start: float) -> bool:
    """Whether a loss that started at ``start`` is not finite, or absurd: beyond `highest_loss` in either direction.

    >>> [has_diverged(loss, 2.0) for loss in (1e5, 1e298, -1e298, math.inf, math.nan)]
    [False, True, True, True, True]
    """
    return not (math.isfinite(loss) and abs(loss) <= highest_loss(start))


def where_diverged(curves: pd.DataFrame) -> pd.Series:
    """Return for every point of the curves whether its train loss has diverged since the first with the same ``id``."""
    starts = curves["id"].map(curves.drop_duplicates("id").set_index("id")["train_loss"])
    found = [has_diverged(float(loss), float(start)) for loss, start in zip(curves["train_loss"], starts, strict=True)]
    return pd.Series(found, index=curves.index, dtype=bool)
