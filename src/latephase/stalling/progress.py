"""What a test of progress is: samples go in, and at times it is asked."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

from latephase.stalling.blocks import Blocks


class Sample(NamedTuple):
    """What one step left behind.

    Attributes:
        loss: Of the step's batch, or whatever else should fall.
        drift: −⟨x, u⟩ − ½‖u‖² of the iterate x before the step u, which is ½‖x‖² before the step minus that after it.
        length: ½‖u‖².
        product: ⟨g, g'⟩ of the last two gradients, None after the first.
    """

    loss: float
    drift: float = 0.0
    length: float = 0.0
    product: float | None = None


class Verdict(NamedTuple):
    """Whether a test finds no more progress, and what it measured, in words."""

    stalled: bool
    words: str


class ProgressTest(ABC):
    """A statistic of samples."""

    @abstractmethod
    def add(self, sample: Sample) -> None:
        """Take what the next step left behind."""

    @abstractmethod
    def verdict(self) -> Verdict:
        """Judge the samples so far."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """Return numbers and tensors."""

    @abstractmethod
    def load(self, state: dict[str, Any]) -> None:
        """Go on from a `state`."""


def part_in_words(blocks: Blocks, part: float) -> str:
    """Return how many samples the last `part` of them has, such as `"1,200 steps"`."""
    return f"{len(blocks.window(part)) * blocks.size:,} steps"
