"""A trend of the losses alone: is their mean lower in the second half of the last part than in the first?"""

from __future__ import annotations

from typing import Any

from latephase.stalling.blocks import Blocks, fall
from latephase.stalling.progress import ProgressTest, Sample, Verdict, part_in_words


class LossTrend(ProgressTest):
    """No more progress where the loss fell by at most `margin` standard errors.

    Args:
        window: Which last part of the samples is looked at, in (0, 1].
        margin: In standard errors of batch means.
    """

    def __init__(self, window: float, margin: float) -> None:
        self.window, self.margin = window, margin
        self._losses = Blocks()

    def add(self, sample: Sample) -> None:
        """Take a loss."""
        self._losses.add(sample.loss)

    def verdict(self) -> Verdict:
        """Compare the halves."""
        batches = self._losses.batch_means(self.window)
        if len(batches) < 4:
            return Verdict(False, "too few losses for a trend")
        change, error = fall(batches)
        stalled = change <= self.margin * error
        return Verdict(
            stalled,
            f"the loss {'has not fallen' if stalled else 'falls'} for {part_in_words(self._losses, self.window)}: "
            f"in their second half its mean is {abs(change):.3g} {'lower' if change > 0.0 else 'higher'} than in the "
            f"first, with a standard error of {error:.3g}",
        )

    def state(self) -> dict[str, Any]:
        """Return numbers and tensors."""
        return {"losses": self._losses.state()}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a `state`."""
        self._losses.load(state["losses"])
