"""Says when SGD at a constant rate has gone into diffusion: around the minimum instead of towards it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from latephase import checks
from latephase.stalling.products import GradientProducts
from latephase.stalling.progress import ProgressTest, Sample
from latephase.stalling.reading import Reading
from latephase.stalling.stationarity import Stationarity
from latephase.stalling.trend import LossTrend

TESTS = ("loss", "stationarity", "pflug")
BETWEEN_CHECKS = 1.1


class StallDetector:
    """Says when training at a constant rate has stopped making progress.

    Tests look at the last part of all steps, again whenever there are 10 % more of them: so there are few looks, and
    what is small is seen in time. If there are several tests, they must agree. How often they are wrong, and how late:
    docs/stall.md.

    Args:
        tests: `"loss"`: the trend of the losses. `"stationarity"`: the statistic of SASA+. `"pflug"`: the sign of
            products of consecutive gradients. None (`()`) if `steps` or `predicate` is to decide.
        steps: Stalled after so many steps, whatever the tests say.
        predicate: Stalled where `predicate(step, loss)` is true, the first step being 1.
        min_steps: How many steps there are before the tests are asked; for `"pflug"` so many products are left out.
        window: Which last part of the steps is looked at, in (0, 1].
        margin: For `"loss"`: how many standard errors the loss may fall. If negative it must rise by so many, which it
            does by chance, and soon: fewer false alarms for twice the wait.
        tolerance: For `"stationarity"`: which share of ½α‖d‖² the drift ⟨x, d⟩ − ½α‖d‖² may be.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If one is out of range, a test is unknown, or there is nothing to decide by.

    Example:
        >>> import torch
        >>> noise = torch.Generator().manual_seed(0)
        >>> x = torch.nn.Parameter(torch.tensor([100.0]))
        >>> opt = torch.optim.SGD([x], lr=0.01)
        >>> detector = StallDetector(tests=("loss", "stationarity"))
        >>> while not detector.stalled:
        ...     loss = 0.5 * (x - torch.randn(1, generator=noise)).square().sum()
        ...     opt.zero_grad()
        ...     loss.backward()
        ...     opt.step()
        ...     stalled = detector.update(loss, opt)
        >>> detector.reason.split(":")[0]
        'the loss has not fallen for 1,... steps'
    """

    def __init__(
        self,
        tests: Iterable[str] = ("loss",),
        *,
        steps: int | None = None,
        predicate: Callable[[int, float], bool] | None = None,
        min_steps: int = 1000,
        window: float = 0.5,
        margin: float = -1.0,
        tolerance: float = 0.02,
    ) -> None:
        if isinstance(tests, str):
            raise TypeError(f"tests must be several names, such as ({tests!r},), not the one text {tests!r}")
        self.tests = tuple(checks.choice(f"tests[{i}]", test, TESTS) for i, test in enumerate(tests))
        if len(set(self.tests)) < len(self.tests):
            raise ValueError(f"tests must differ, not be {self.tests}")
        if not self.tests and steps is None and predicate is None:
            raise ValueError("tests=() needs steps=… or predicate=…: there is nothing to decide by")
        self.steps = None if steps is None else checks.positive_integer("steps", steps)
        self.predicate = None if predicate is None else checks.function("predicate", predicate)
        self.min_steps = checks.positive_integer("min_steps", min_steps)
        self.window = checks.positive_fraction("window", window)
        self.margin = math.copysign(1.0, margin) * checks.non_negative("margin", abs(margin))
        self.tolerance = checks.non_negative("tolerance", tolerance)
        self.reset()

    @property
    def stalled(self) -> bool:
        """Whether there has been no more progress, once; from then on until `reset`."""
        return self._stalled

    @property
    def reason(self) -> str:
        """Why it is stalled or not, in words."""
        lost = f"; {self._lost:,} steps were left out, as the loss or the update was not finite" if self._lost else ""
        return self._reason + lost

    def reset(self) -> None:
        """Forget everything, as is right after a change of the rate."""
        self._step, self._lost, self._stalled = 0, 0, False
        self._reading = Reading(gradients="pflug" in self.tests)
        self._start_over("there has been no step yet")

    def update(self, loss: float | Tensor, optimizer: Optimizer | None = None) -> bool:
        """Take the loss of a step, after `optimizer.step()`; return whether training is stalled.

        A loss that is not finite is no sign of a stall, nor of progress: the step is left out, and `reason` says so.
        Where the learning rate is another than before, the tests begin anew.

        Args:
            loss: A number, or a tensor with one.
            optimizer: Whose parameters, and for `"pflug"` gradients, are read; the test `"loss"` needs none.

        Returns:
            Whether training is stalled.

        Raises:
            TypeError: If the loss is no number, or there is no optimizer where a test needs one.
            ValueError: If `"pflug"` finds no gradients, or the optimizer is another than before.
        """
        value = _number(loss)
        if optimizer is None and not {"loss"} >= set(self.tests):
            raise TypeError(f"tests={self.tests} reads the optimizer: update(loss, optimizer)")
        self._step += 1
        self._take(value, optimizer)
        if not self._stalled:
            self._decide(value)
        return self._stalled

    def state_dict(self) -> dict[str, Any]:
        """Return everything but the settings, in numbers, texts and tensors. Copies: they stay as they are."""
        return {
            "tests": list(self.tests),
            "counts": [self._step, self._lost, self._samples, self._next],
            "stalled": self._stalled,
            "reason": self._reason,
            "reading": self._reading.state(),
            "statistics": [test.state() for test in self._statistics],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state of a detector with the same settings, as the undisturbed one would have, to the bit.

        Raises:
            ValueError: If it is none of `state_dict`, or of other tests.
        """
        expected = {"tests", "counts", "stalled", "reason", "reading", "statistics"}
        if set(state) != expected:
            raise ValueError(f"a state of StallDetector has the entries {sorted(expected)}, not {sorted(state)}")
        if tuple(state["tests"]) != self.tests:
            raise ValueError(f"the state is of tests={tuple(state['tests'])}, but this detector has {self.tests}")
        self._step, self._lost, self._samples, self._next = map(int, state["counts"])
        self._stalled, self._reason = bool(state["stalled"]), str(state["reason"])
        self._reading.load(state["reading"])
        for test, of_test in zip(self._statistics, state["statistics"], strict=True):
            test.load(of_test)

    def _start_over(self, reason: str) -> None:
        self._samples, self._next, self._reason = 0, self.min_steps, reason
        self._statistics = [self._statistic(name) for name in self.tests]

    def _statistic(self, name: str) -> ProgressTest:
        if name == "loss":
            return LossTrend(self.window, self.margin)
        if name == "stationarity":
            return Stationarity(self.window, self.tolerance)
        return GradientProducts(self.min_steps)

    def _take(self, loss: float, optimizer: Optimizer | None) -> None:
        """Give the step to the statistics, unless it is not finite or the first."""
        sample: Sample | None = Sample(loss)
        if optimizer is not None:
            if self._reading.rates_changed(optimizer):
                self._start_over(f"the learning rate changed at step {self._step:,}")
            if not {"loss"} >= set(self.tests):
                sample = self._reading.read(optimizer, loss)
        if sample is None and math.isfinite(loss):
            return
        if sample is None or not all(value is None or math.isfinite(value) for value in sample):
            self._lost += 1
            return
        self._samples += 1
        for test in self._statistics:
            test.add(sample)

    def _decide(self, loss: float) -> None:
        if self.steps is not None and self._step >= self.steps:
            self._stalled, self._reason = True, f"there have been {self._step:,} steps, steps={self.steps:,}"
        elif self.predicate is not None and self.predicate(self._step, loss):
            self._stalled, self._reason = True, f"the predicate was true at step {self._step:,}"
        elif self._samples < self.min_steps:
            self._reason = self._waiting()
        elif self.tests and self._samples >= self._next:
            self._next = math.ceil(BETWEEN_CHECKS * self._samples)
            verdicts = [test.verdict() for test in self._statistics]
            self._stalled = all(verdict.stalled for verdict in verdicts)
            self._reason = "; ".join(verdict.words for verdict in verdicts)

    def _waiting(self) -> str:
        if not self.tests:
            return f"{self._step:,} steps, and neither their number nor the predicate says that it is stalled"
        return f"no verdict before {self.min_steps:,} steps with finite losses, of which there have been few"


def _number(loss: float | Tensor) -> float:
    """A loss as a number, which may be none that is finite."""
    if isinstance(loss, Tensor):
        if loss.numel() != 1 or loss.is_complex():
            raise TypeError(f"loss must be one real number, not a tensor of {loss.dtype}, shape {tuple(loss.shape)}")
        return float(loss.item())
    if isinstance(loss, bool) or not isinstance(loss, (int, float)):
        raise TypeError(f"loss must be a number, not {loss!r}")
    return float(loss)
