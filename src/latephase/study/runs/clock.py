"""A stopwatch for training time, and a device to oneself while it runs."""

import getpass
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

import torch
from filelock import FileLock


class Clock:
    """Adds up the wall-clock seconds spent inside ``with clock:``.

    A device works asynchronously, so its queue is drained at both ends of an interval: work queued before (an
    evaluation) is not charged, work still running at the end is.

    >>> clock = Clock(torch.device("cpu"))
    >>> with clock:
    ...     pass
    >>> clock.seconds < 1
    True

    Args:
        device: The device that does the work.
        now: Returns the time in seconds.
    """

    def __init__(self, device: torch.device, now: Callable[[], float] = time.perf_counter) -> None:
        self._device = device
        self._now = now
        self._total = 0.0
        self._started: float | None = None

    @property
    def seconds(self) -> float:
        """The seconds so far; while the clock runs, those of the current interval are in it."""
        running = 0.0 if self._started is None else self._now() - self._started
        return self._total + running

    def __enter__(self) -> "Clock":
        if self._started is not None:
            raise RuntimeError("the clock is already running")
        _synchronise(self._device)
        self._started = self._now()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _synchronise(self._device)
        self._total = self.seconds
        self._started = None


@contextmanager
def to_itself(device: torch.device) -> Iterator[None]:
    """Wait until no other timed run of this user is on this machine's device, and keep others from it.

    All cores of a machine are one device: what another run does on one of them slows the others.
    """
    index = 0 if device.index is None and device.type != "cpu" else device.index
    name = device.type if index is None else f"{device.type}{index}"
    with FileLock(Path(tempfile.gettempdir()) / f"latephase-{getpass.getuser()}-{name}.lock"):
        yield


def _synchronise(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
