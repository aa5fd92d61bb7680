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
    """The same ratio for each doubling: of second-order and quasi-Newton steps."""

    LENGTH = "length"
    """Of a schedule, with its length: as a power of it between 0 (the same for each doubling, which is what two lengths
    are taken for) and 1 (in proportion: the training was not over yet), as three lengths show. One shows nothing."""

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
    positive = best > 0.0
    scale, back = (math.log, math.exp) if positive else (float, float)
    if growth is Growth.LENGTH and len(earlier) - (finite[0].share == 0.0) < 1:
        return best  # one length says nothing of others
    if growth is Growth.LENGTH and sum(sample.share > 0.0 for sample in finite) > 2:
        more = _power_law([(sample.share, scale(sample.score)) for sample in finite[-3:]], share)
        return min(best, back(scale(last.score) - max(0.0, more)))
    half = min(earlier, key=lambda sample: abs(sample.share - last.share / 2))
    # A start that is the only earlier sample counts as half: the first step as the first doubling.
    doublings = math.log2(last.share / half.share) if half.share > 0.0 else 1.0
    gain = min(0.0, scale(last.score) - scale(half.score)) / doublings
    ahead = math.log2(share / last.share)
    whole = 1.0 - 0.5**ahead if growth is Growth.AVERAGE else ahead
    return min(best, back(scale(last.score) + gain * whole))


def hope(samples: Sequence[Sample], share: float) -> float:
    """Return the score of a schedule of length `share` if what it gains is in proportion to its length.

    Args:
        samples: As for `promise`; at least two with a share above 0.
        share: Likewise.

    >>> round(hope([Sample(0.0, 9.0), Sample(0.01, 8.0), Sample(0.02, 4.0)], 0.03), 6)
    2.0
    """
    (short, worse), (long, better) = samples[-2:]
    if not 0.0 < better < worse < math.inf:
        return better
    return better * (better / worse) ** ((share - long) / (long - short))


def _power_law(points: list[tuple[float, float]], x: float) -> float:
    """How much lower than at the third point b·x^q is, whose q in [0, 1] fits three points best; b as the last two."""
    (x1, y1), (x2, y2), (x3, y3) = points
    early, late = max(0.0, y1 - y2), max(0.0, y2 - y3)
    powers = [_Power(k / 20) for k in range(21)]
    best = min(powers, key=lambda f: abs(early * (f(x3) - f(x2)) - late * (f(x2) - f(x1))))
    return late * (best(x) - best(x3)) / (best(x3) - best(x2))


class _Power:
    """x^q, which for q = 0 grows as the logarithm."""

    def __init__(self, q: float) -> None:
        self.q = q

    def __call__(self, x: float) -> float:
        return math.log(x) if self.q == 0.0 else x**self.q
