"""Where runs are carried out: one after the other in this process, or spread over a Ray cluster."""

import time
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import TYPE_CHECKING

from latephase.freed_memory import keep_freed_memory
from latephase.study.runs.experiments import Place, perform
from latephase.study.runs.progress import Reporter
from latephase.study.runs.records import Record, Training

if TYPE_CHECKING:
    from ray import ObjectRef

Engine = Callable[[Place, Sequence[Record]], None]
"""Carries out runs that are not complete yet; returns when all are, or have failed."""

_PAUSE = 1.0  # seconds until a run that another process is at is looked at again


def local_engine(reporter: Reporter) -> Engine:
    """Return an engine that carries out one run after the other, here: nothing else disturbs their clocks."""

    def engine(place: Place, records: Sequence[Record]) -> None:
        if not records:
            return
        with reporter.task(_title(records)) as update:
            waiting, done = list(records), 0
            while waiting:
                record = waiting.pop(0)

                def progress(fraction: float, remark: str, record: Record = record, done: int = done) -> None:
                    update((done + fraction) / len(records), f"{record.title}: {remark}")

                state = perform(place, record, progress)
                if state == "busy":
                    waiting.append(record)
                    time.sleep(_PAUSE)
                else:
                    done += 1
                    reporter.say(f"{done}/{len(records)} {record.title}: {state}")
            update(1.0, "done")

    return engine


class RayEngine:
    """Spreads runs over a Ray cluster (the one at `RAY_ADDRESS`, else one of this machine).

    A run whose worker or machine is lost starts again elsewhere. The folder of runs must be one that all machines see.

    Args:
        reporter: Told about each run.
        cpus: CPUs that a run takes. Default: where time matters all of the smallest machine's, so that runs share none;
            else one.
        gpus: GPUs that a run takes. Default: one on a GPU, else none.

    Raises:
        ImportError: If Ray is not installed.
    """

    def __init__(self, reporter: Reporter, *, cpus: float | None = None, gpus: float | None = None) -> None:
        try:
            import ray
        except ImportError:
            raise ImportError("the engine ray needs the package ray: pip install 'latephase[ray]'") from None
        self._ray = ray
        # One for all runs, because Ray sends every function it has not seen to all workers. Tried again as often as
        # workers and machines are lost; an error of a run's own is no such loss.
        self._perform = ray.remote(max_retries=-1)(_perform_silently)
        self._reporter = reporter
        self._cpus = cpus
        self._gpus = gpus

    def __call__(self, place: Place, records: Sequence[Record]) -> None:
        """See `Engine`."""
        if not records:
            return
        if not self._ray.is_initialized():
            self._ray.init(log_to_driver=False)
        with self._reporter.task(_title(records)) as update:
            running = {self._submit(place, record): record for record in records}
            done = 0
            while running:
                for reference in self._ray.wait(list(running), num_returns=1, timeout=_PAUSE)[0]:
                    record = running.pop(reference)
                    state = self._state(reference)
                    if state == "busy":
                        time.sleep(_PAUSE)
                        running[self._submit(place, record)] = record
                    else:
                        done += 1
                        update(done / len(records), f"{record.title}: {state}")
                        self._reporter.say(f"{done}/{len(records)} {record.title}: {state}")
            update(1.0, "done")

    def _submit(self, place: Place, record: Record) -> "ObjectRef[str]":
        cpus = _fewest_cpus(self._ray) if record.timed else 1
        gpus = 1 if place.device.startswith("cuda") else 0
        return self._perform.options(
            num_cpus=cpus if self._cpus is None else self._cpus, num_gpus=gpus if self._gpus is None else self._gpus
        ).remote(place, record)

    def _state(self, reference: "ObjectRef[str]") -> str:
        try:
            return self._ray.get(reference)
        except (self._ray.exceptions.RaySystemError, self._ray.exceptions.WorkerCrashedError):
            return "busy"  # lost, and to be tried again


def _fewest_cpus(ray: ModuleType) -> float:
    """CPUs of the smallest machine in the cluster."""
    return min(node["Resources"]["CPU"] for node in ray.nodes() if node["Alive"] and "CPU" in node["Resources"])


def _perform_silently(place: Place, record: Record) -> str:
    keep_freed_memory()  # as the command line does where runs are made here
    return perform(place, record, lambda fraction, remark: None)


def _title(records: Sequence[Record]) -> str:
    return "train" if isinstance(records[0], Training) else f"{len(records)} late-phase runs"
