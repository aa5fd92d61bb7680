"""Stationarity of the iterates: the statistic of SASA+ (Zhang, Lang, Liu, Xiao 2020), with a test of its own.

With x₊ = x − αd, stationarity of ‖x‖² means E⟨x, d⟩ = ½αE‖d‖². In terms of the step u = −αd the statistic of the paper
is, times α, Δ = −⟨x, u⟩ − ½‖u‖² = ½‖x‖² − ½‖x₊‖². So its sums telescope, no rate is needed, and the steps may be those
of any optimizer.
"""

from __future__ import annotations

from typing import Any

from latephase.stalling.blocks import Blocks, mean
from latephase.stalling.progress import ProgressTest, Sample, Verdict, part_in_words


class Stationarity(ProgressTest):
    """No more progress where the mean of Δ is within ± `tolerance` times that of ½‖u‖², each half by itself.

    Args:
        window: Which last part of the samples is looked at, in (0, 1].
        tolerance: Which share of ½‖u‖² is as good as 0.
    """

    def __init__(self, window: float, tolerance: float) -> None:
        self.window, self.tolerance = window, tolerance
        self._drifts, self._lengths = Blocks(), Blocks()

    def add(self, sample: Sample) -> None:
        """Take Δ and ½‖u‖² of a step."""
        self._drifts.add(sample.drift)
        self._lengths.add(sample.length)

    def verdict(self) -> Verdict:
        """Compare the means of the two."""
        batches = self._drifts.batch_means(self.window)
        if len(batches) < 4:
            return Verdict(False, "too few steps for stationarity")
        half = len(batches) // 2
        length = mean(self._lengths.batch_means(self.window)).mean
        drift = max((mean(batches[:half]).mean, mean(batches[half:]).mean), key=abs)
        stalled = abs(drift) <= self.tolerance * length
        return Verdict(
            stalled,
            f"the parameters {'are stationary' if stalled else 'drift'} for {part_in_words(self._drifts, self.window)}:"
            f" ⟨x, d⟩ − ½α‖d‖² is on average {drift / length if length else 0.0:.2g} times ½α‖d‖²",
        )

    def state(self) -> dict[str, Any]:
        """Return numbers and tensors."""
        return {"drifts": self._drifts.state(), "lengths": self._lengths.state()}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a `state`."""
        self._drifts.load(state["drifts"])
        self._lengths.load(state["lengths"])
