"""What all curvature operators have in common: `C @ v`, and an account of how it is computed."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

import torch
from torch import Tensor

from latephase.curvature.engines.engine import StaleOperatorError
from latephase.curvature.ladder import E, Ladder
from latephase.curvature.options import DEFAULT_OPTIONS, Options
from latephase.curvature.point import Point
from latephase.curvature.verify import DisagreementError
from latephase.transaction import as_numbers

T = TypeVar("T")
Mark = float | torch.cuda.Event


class CurvatureOperator(ABC, Generic[E]):
    """A symmetric P×P matrix at one point, given by its products.

    Args:
        point: Loss, outputs and, where `needs_graph_at` says so, their graph.
        options: How products are computed.

    Attributes:
        needs_graph: Whether the point's graph must stay; else it may be dropped before the first product.
    """

    def __init__(self, point: Point, options: Options = DEFAULT_OPTIONS) -> None:
        self._point = point
        self._parameters = point.parameters
        self._options = options
        self._setup, self._products = (Stopwatch(self._parameters.device) for _ in range(2))
        with self._setup.lap():
            self._engine, self._choice = self.ladder().climb(point, options)
        self.needs_graph: bool = self._engine.needs_graph
        self._made_anew = False

    @classmethod
    @abstractmethod
    def ladder(cls) -> Ladder[E]:
        """The ways to compute products, and what was chosen among them."""

    @classmethod
    def needs_graph_at(cls, point: Point, options: Options = DEFAULT_OPTIONS) -> bool:
        """Whether an operator at this point can only be made while the point has its graph."""
        choice = cls.ladder().remembered(point, options)
        return choice is None or choice.needs_graph

    @property
    def backend(self) -> str:
        """The rung that computes products."""
        return self._choice.name

    def explain(self) -> str:
        """Say which rung computes products, why those above it do not, and what set-up and products cost."""
        lines = [f"products by {self.backend}{self._details()}"]
        lines += [f"not by {rung}: {reason}" for rung, reason in self._choice.refusals.items()]
        lines += [f"note: {remark.value}" for remark in self._choice.remarks]
        lines.append(f"set-up {self._setup.mean:.3g} s")
        if self._products.laps:
            lines.append(f"{self._products.laps} products, {self._products.mean:.3g} s each")
        return "\n".join(lines)

    def release(self) -> None:
        """Let go of what the next product can compute again."""
        self._engine.release()

    def __matmul__(self, v: Tensor) -> Tensor:
        """Multiply a vector of shape (P,) or a matrix of shape (P, k).

        Returns:
            The product, in the same shape.

        Raises:
            ValueError: For another shape.
            RuntimeError: If the parameters have changed since the operator was made.
        """
        if v.dim() not in (1, 2) or v.shape[0] != self._parameters.numel:
            raise ValueError(
                f"v must have shape ({self._parameters.numel},) or ({self._parameters.numel}, k), not {tuple(v.shape)}"
            )
        if v.dim() == 2:
            return torch.stack([self @ column for column in v.unbind(1)], dim=1)
        with self._products.lap(), as_numbers():
            pieces = self._parameters.split(v)
            return self._parameters.join(self._surely(lambda: self._product(pieces)))

    def _surely(self, work: Callable[[], T]) -> T:
        """Return what `work` does with the engine; with another one if it fails, or is seen to be wrong, only now.

        Raises:
            CurvatureError: If no engine is left.
            StaleOperatorError: If the parameters have changed.
            OutOfMemoryError: If there is no memory, which no other engine would mend.
        """
        while True:
            try:
                return work()
            except (StaleOperatorError, torch.OutOfMemoryError):  # noqa: PERF203 — a handful of rungs
                raise
            except Exception as error:
                self._replace_engine(error)

    def _replace_engine(self, error: Exception) -> None:
        """Take what was made at another point, and is wrong at this one, anew, once; else a lower rung."""
        anew = isinstance(error, DisagreementError) and not self._made_anew
        self._made_anew |= anew
        other = self.ladder().choose_anew if anew else self.ladder().step_down
        self._engine, self._choice = other(self._point, self._options, self._choice, error)
        self.needs_graph = self._engine.needs_graph
        if not self.needs_graph:
            self._point.drop_graph()

    @abstractmethod
    def _product(self, v: list[Tensor]) -> list[Tensor]:
        """Multiply a vector that is split into the parameters' shapes, by `self._engine`."""

    def _details(self) -> str:
        return ""


class Stopwatch:
    """Times what a device does, without waiting for it before somebody asks."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._laps: list[tuple[Mark, Mark]] = []

    @contextmanager
    def lap(self) -> Iterator[None]:
        """Time the block."""
        start = self._mark()
        yield
        self._laps.append((start, self._mark()))

    def _mark(self) -> Mark:
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    @property
    def laps(self) -> int:
        """How many blocks were timed."""
        return len(self._laps)

    @property
    def mean(self) -> float:
        """Seconds per block."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return sum(_seconds(start, end) for start, end in self._laps) / self.laps


def _seconds(start: Mark, end: Mark) -> float:
    if isinstance(start, float) and isinstance(end, float):
        return end - start
    assert isinstance(start, torch.cuda.Event)
    assert isinstance(end, torch.cuda.Event)
    return start.elapsed_time(end) / 1000.0
