"""One command at work on a folder of runs; what is wrong it says of the option or argument that it is about."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from enum import Enum
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import typer
from rich.console import Console

from latephase.study.analysis.results import Results, load_results
from latephase.study.data import DataError
from latephase.study.problems.check import ProblemError
from latephase.study.processes import joined, own_device
from latephase.study.runs.budget import Budget
from latephase.study.runs.engines import Engine, RayEngine, local_engine
from latephase.study.runs.experiments import Place, load_problem_data
from latephase.study.runs.plan import has_changed, plan_runs, plan_training
from latephase.study.runs.progress import Reporter
from latephase.study.runs.records import LateRun, Record, Training
from latephase.study.runs.store import Store, StoreError
from latephase.study.show import tables
from latephase.study.show.figures import save_all
from latephase.study.show.report import write_report
from latephase.study.show.status import fault, status_tables
from latephase.study.threads import threads


class EngineName(str, Enum):
    """Where runs are carried out."""

    LOCAL = "local"
    RAY = "ray"


class Command:
    """One command at work on a folder of runs; see `command_at`.

    Attributes:
        console: Where to print: nowhere if this is not the first of several processes.
        writes: Whether this process writes the report and figures, as the first of several does.

    Args:
        place: Where runs are carried out.
        quiet: Whether to show no progress.
        engine: What carries them out.
        cpus: With Ray: CPUs that a run takes.
        gpus: With Ray: GPUs that a run takes.

    Raises:
        typer.BadParameter: Like all methods, if an option or argument is wrong; it names that.
    """

    def __init__(
        self,
        place: Place,
        *,
        quiet: bool,
        engine: EngineName = EngineName.LOCAL,
        cpus: float | None = None,
        gpus: float | None = None,
    ) -> None:
        if quiet:  # read by the libraries that fetch data, when they are first needed
            os.environ.update(HF_DATASETS_DISABLE_PROGRESS_BARS="1", HF_HUB_DISABLE_PROGRESS_BARS="1")
        self._processes, self.writes = place.ranks.count, place.ranks.rank == 0
        self.console = Console(quiet=not self.writes)
        self._reporter = Reporter(self.console, quiet=quiet)
        self._place = place
        self._made: list[str] = []
        with _blaming("the folder of runs", ValueError, ImportError):
            self._store = Store(place.address)
        if place.tensorboard is not None:
            with _blaming("--tensorboard", ImportError):
                import_module("torch.utils.tensorboard")  # better refused now than after the training
        self._here = engine is EngineName.LOCAL
        self._engine: Engine = local_engine(self._reporter)
        if engine is EngineName.RAY:
            if self._processes > 1:
                raise typer.BadParameter(
                    "ray spreads runs over processes, torchrun each single one; choose", param_hint="--engine"
                )
            with _blaming("--engine", ImportError):
                self._engine = RayEngine(self._reporter, cpus=cpus, gpus=gpus)

    def train(self, problem: str, seed: int, epochs: int | None) -> Training:
        """Make sure of a complete training, and return it."""
        with _blaming("PROBLEM", ValueError):
            training = plan_training(
                problem, epochs=epochs, seed=seed, device=self._place.device, processes=self._processes
            )
        with _blaming("--data-dir", DataError), _blaming("PROBLEM", ProblemError):
            chosen, _ = load_problem_data(training, self._place)
        with threads(None):
            size = sum(t.nbytes for t in chosen.build_model().state_dict().values())
        with _blaming("--out", StoreError):
            self._store.prepare(needed=12 * size)
        self._make([training])
        self.leave()
        return training

    def trainings(self) -> list[Training]:
        """Return the folder's complete trainings, but for those whose problem has changed while others' has not."""
        statuses = [self._store.status(run) for run in self._store.ids()]
        found = [s.record for s in statuses if s.state == "complete" and isinstance(s.record, Training)]
        if not found:
            raise typer.BadParameter(
                f"{self._place.address} holds no complete training; "
                f"latephase train PROBLEM --out {self._place.address} makes one"
            )
        others = sorted({training.processes for training in found} - {self._processes})
        found = [training for training in found if training.processes == self._processes]
        if not found:
            raise typer.BadParameter(
                f"the trainings in {self._place.address} are by {' and by '.join(map(str, others))} processes, this is "
                f"one of {self._processes}: only as many go on from them (torchrun --nproc-per-node {others[0]})"
            )
        changed = [training for training in found if has_changed(training)]
        if len(changed) == len(found):
            return found  # to be refused
        for training in changed:
            text = f"nothing goes on from {training.identity} ({training.title}): its problem file has changed since"
            self.console.print(text, style="yellow", soft_wrap=True, markup=False, highlight=False)
        return [training for training in found if training not in changed]

    def resume(
        self, trainings: Sequence[Training], checkpoint: str, strategies: str | None, seeds: int, budget: str
    ) -> None:
        """Make sure of the late-phase runs that are asked for."""
        records: list[LateRun] = []
        with _blaming("--budget", ValueError):
            allowed = Budget.parse(budget)
        for training in trainings:
            with _blaming("--checkpoint or --strategies", ValueError), _blaming("the training's problem", ProblemError):
                planned = plan_runs(
                    self._store, training, checkpoint=checkpoint, strategies=strategies, seeds=seeds, budget=allowed
                )
            if self._here and self._missing(planned):
                with _blaming("--data-dir", DataError), _blaming("the training's problem", ProblemError):
                    load_problem_data(training, self._place)  # better refused now than by every run
            records += planned
        self._make(records)

    def _missing(self, records: Sequence[Record]) -> list[Record]:
        return [record for record in records if self._store.status(record.identity).state != "complete"]

    def _make(self, records: Sequence[Record]) -> None:
        missing = self._missing(records)
        self._made += [record.identity for record in missing]
        try:
            self._engine(self._place, missing)
        except StoreError as error:
            raise typer.BadParameter(str(error)) from None
        except KeyboardInterrupt:
            self.console.print("interrupted; the same command goes on from here", style="yellow")
            raise typer.Exit(130) from None

    def results(self) -> Results:
        """Read what the folder holds."""
        return load_results(self._store)

    def status(self) -> None:
        """Print what the folder holds, and how much of it is complete."""
        ids = self._store.ids()
        if not ids:
            raise typer.BadParameter(f"{self._place.address} holds no runs")
        statuses = {run: self._store.status(run) for run in ids}
        trainings = [run for run, status in statuses.items() if isinstance(status.record, Training)]
        checkpoints = {run: len(self._store.checkpoints(run)) for run in trainings}
        self.console.print(status_tables(statuses, checkpoints))

    def report(self, to: str) -> None:
        """Write the page and the figures."""
        if not self.writes:
            return
        results = self.results()
        if results.trainings.empty:
            raise typer.BadParameter(f"{self._place.address} holds no complete training to report on")
        if "://" in to:
            raise typer.BadParameter("a report is written to a folder of this machine; name one with --to")
        page = Path(to) / "report.html"
        with _blaming("--to", OSError):
            (Path(to) / "figures").mkdir(parents=True, exist_ok=True)
            with self._reporter.task("write the report") as update:
                write_report(results, page)
                update(0.7, "figures")
                save_all(results, Path(to) / "figures")
                update(1.0, "done")
        if not results.runs.empty:
            self.console.print(tables.summary_tables(results))
        self.console.print(f"report: {page}", soft_wrap=True, highlight=False)

    def leave(self) -> None:
        """Name those of this command's runs that failed, and end with exit status 1 if any did."""
        failed = {run: status for run in self._made if (status := self._store.status(run)).state != "complete"}
        for run, status in failed.items():
            self.console.print(fault(run, status), soft_wrap=True)
        if failed:
            raise typer.Exit(1)


@contextmanager
def command_at(place: Place, **options: Any) -> Iterator[Command]:
    """Yield a command of all processes that torchrun has started, or of this one; see `Command`."""
    with _blaming("--device", RuntimeError):
        device = own_device(place.device)
        torch.zeros(1, device=device)
    with joined(torch.device(device)) as group:
        yield Command(replace(place, device=device, process_group=group), **options)


@contextmanager
def _blaming(what: str, *errors: type[Exception]) -> Iterator[None]:
    """Turn those errors in the block into a message about an option or argument."""
    try:
        yield
    except errors as error:
        raise typer.BadParameter(str(error), param_hint=what) from None
