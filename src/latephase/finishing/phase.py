"""What a finish did, phase by phase: plain values, for reports and for files."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple


class Point(NamedTuple):
    """A network was judged.

    Attributes:
        share: Of the budget that was gone.
        score: The lower the better.
    """

    share: float
    score: float


@dataclass
class Phase:
    """A strategy at work for a share of the budget.

    Attributes:
        candidate: Its name.
        trial: Whether it was tried, or had been chosen.
        reason: Why, in words.
        begin: The share of the budget that was gone when it began.
        length: The share that it was given.
        end: The share that was gone when it ended.
        steps: How many it took.
        gradients: Their work, in gradients on a batch.
        points: When it was judged, and how.
        outcome: What came of it, in words; empty while it is at work.
    """

    candidate: str
    trial: bool
    reason: str
    begin: float
    length: float
    end: float
    steps: int = 0
    gradients: float = 0.0
    points: list[Point] = field(default_factory=list)
    outcome: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return it in numbers, texts, lists and dictionaries."""
        return {**asdict(self), "points": [list(point) for point in self.points]}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Phase:
        """Return the phase that `to_json` was of."""
        return cls(**{**content, "points": [Point(*point) for point in content["points"]]})
