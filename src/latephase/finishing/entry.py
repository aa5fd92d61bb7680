"""A strategy in the race: what it has shown, and what it promises."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from latephase.finishing.candidates import Candidate
from latephase.finishing.prices import Means, TooDearError
from latephase.finishing.promise import Sample, hope, promise


@dataclass
class Entry:
    """A candidate in the race.

    Attributes:
        candidate: It.
        samples: The share of the budget spent on it, and its score then; its beginning first.
        means: What a step of it may cost.
        kept: Where it stands, for when it goes on.
        price: The share of the budget that a step costs, where that was too much for a trial; 0 where it was not.
        out: Why it is out of the race; empty while it is in.
        stalled: Whether it has come to its end.
    """

    candidate: Candidate
    samples: list[Sample] = field(default_factory=list)
    means: Means = field(default_factory=lambda: Means(1.0, math.inf))
    kept: dict[str, Any] | None = None
    price: float = 0.0
    out: str = ""
    stalled: bool = False

    def expected(self, left: float, best: float) -> float:
        """Return the score to expect of it with so much of the budget left; `best` is the best of all so far."""
        if self.stalled:
            return min(sample.score for sample in self.samples)
        before = 0.0 if self.candidate.restarts else self.samples[-1].share
        expected = promise(self.samples, before + left, self.candidate.growth)
        return min(expected, best) if self.candidate.from_best else expected  # it begins at the best state

    def fits(self) -> bool:
        """Whether it has steps that cost no more than they may."""
        try:
            self.candidate.build(self.means)
        except TooDearError:
            return False
        return True

    def unknown(self, left: float) -> bool:
        """Whether it has taken no step so far, though one may fit into what is left of the budget."""
        return 0.0 < self.price <= left if self.out else not self.samples

    def rises(self, best: float) -> bool:
        """Whether it begins at a state that is better than any that it has been at."""
        return self.candidate.from_best and all(best < sample.score for sample in self.samples)

    @property
    def clear(self) -> bool:
        """Whether its promise is more than a guess: a schedule's is one as long as it comes from short trials alone."""
        return not self.candidate.restarts or len(self.samples) > 1 + len(self.candidate.trials)

    @property
    def steady(self) -> bool:
        """Whether it goes on from the start and can be judged on the way."""
        return not (self.candidate.restarts or self.candidate.from_best)

    def hoped(self, left: float) -> float:
        """Return the score of a schedule whose trials leave it open how its gain grows; infinite if they do not."""
        if self.candidate.longer is None or self.out or len(self.samples) != 1 + len(self.candidate.trials):
            return math.inf
        return hope(self.samples, left)
