"""What a strategy's short trial says about a long one."""

import math
from collections.abc import Sequence
from enum import Enum
from typing import NamedTuple


class Sample(NamedTuple):
    """A strategy was judged.

    Attributes:
        share: How much of the whole budget it had spent, in this and earlier trials that it goes on from.
        score: By which it is judged; the lower the better.
    """

    share: float
    score: float


class Growth(str, Enum):
    """How what a strategy gains grows with what it spends."""

    POWER = "power law"
    """The same ratio for each doubling: of second-order and quasi-Newton steps, and of a decay with its length."""

    AVERAGE = "average"
    """Half as much for each further doubling: what averages gain is noise, of which 1/n is left after n."""


def promise(samples: Sequence[Sample], share: float, growth: Growth) -> float:
    """Return the score to expect once `share` of the budget has been spent, never worse than the best so far.

    From the last sample and the one nearest to half its share: their ratio is what a doubling brings. Where scores
    are not all positive, differences stand in for ratios.

    Args:
        samples: In the order of their shares, the start (share 0) among them.
        share: Of the whole budget, on what the strategy has spent already and will.
        growth: How gains grow.

    >>> halving = [Sample(0.0, 8.0), Sample(0.01, 4.0), Sample(0.02, 2.0)]
    >>> round(promise(halving, 0.08, Growth.POWER), 6), round(promise(halving, 0.04, Growth.AVERAGE), 6)
    (0.5, 1.414214)
    """
    finite = [sample for sample in samples if math.isfinite(sample.score)]
    best = min((sample.score for sample in finite), default=math.inf)
    last = finite[-1] if finite else None
    earlier = [sample for sample in finite[:-1] if last is not None and sample.share < last.share]
    if last is None or not earlier or share <= last.share:
        return best
    half = min(earlier, key=lambda sample: abs(sample.share - last.share / 2))
    positive = best > 0.0
    scale, back = (math.log, math.exp) if positive else (float, float)
    # A start that is the only earlier sample counts as half: the first step as the first doubling.
    doublings = math.log2(last.share / half.share) if half.share > 0.0 else 1.0
    gain = min(0.0, scale(last.score) - scale(half.score)) / doublings
    ahead = math.log2(share / last.share)
    whole = ahead if growth is Growth.POWER else 1.0 - 0.5**ahead
    return min(best, back(scale(last.score) + gain * whole))
