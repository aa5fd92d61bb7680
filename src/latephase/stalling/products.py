"""Pflug's test: once SGD is stationary, consecutive gradients point against each other more often than not.

Pesme, Dieuleveut and Flammarion (2020) show where it fails: the mean product is of the order of the rate, its noise is
not, so that for small rates the sign of the running sum is that of the noise, soon and by chance.
"""

from __future__ import annotations

from typing import Any

from latephase.stalling.progress import ProgressTest, Sample, Verdict


class GradientProducts(ProgressTest):
    """No more progress where the running sum of ⟨g, g'⟩ is negative, the first products left out.

    Args:
        burn_in: How many products are left out.
    """

    def __init__(self, burn_in: int) -> None:
        self.burn_in = burn_in
        self._seen, self._total = 0, 0.0

    def add(self, sample: Sample) -> None:
        """Take a product, if there is one."""
        if sample.product is None:
            return
        self._seen += 1
        if self._seen > self.burn_in:
            self._total += sample.product

    def verdict(self) -> Verdict:
        """Look at the sign."""
        summed = max(0, self._seen - self.burn_in)
        stalled = self._total < 0.0
        return Verdict(
            stalled,
            f"{'consecutive gradients point against each other' if stalled else 'consecutive gradients agree'}: "
            f"their {summed:,} products sum to {self._total:.3g}",
        )

    def state(self) -> dict[str, Any]:
        """Return numbers."""
        return {"seen": self._seen, "total": self._total}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a `state`."""
        self._seen, self._total = int(state["seen"]), float(state["total"])
