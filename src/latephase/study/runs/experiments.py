"""How a run is carried out, and written to the store."""

from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch

from latephase.distributed import Ranks, find_ranks
from latephase.strategies.strategy import Strategy
from latephase.study.data import Data
from latephase.study.problems import Problem
from latephase.study.problems.check import check_data, check_network
from latephase.study.runs.budget import Allowance, Budget
from latephase.study.runs.clock import to_itself
from latephase.study.runs.machine import describe_machine
from latephase.study.runs.plan import problem_of
from latephase.study.runs.progress import Update
from latephase.study.runs.records import LateRun, Record, Training
from latephase.study.runs.runner import Run, resume
from latephase.study.runs.store import Store, StoreError
from latephase.study.runs.tensorboard import log_curve
from latephase.study.runs.training import Checkpoint, train
from latephase.study.strategies.catalogue import find_strategy
from latephase.study.threads import threads


@dataclass(frozen=True)
class Place:
    """Where runs are carried out: what they depend on, but their results do not.

    Attributes:
        address: The folder of runs.
        data_dir: Where the data are; None for their default place.
        device: What to compute on.
        tensorboard: Folder for TensorBoard's logs, or None.
        process_group: The processes that take each step together, see `latephase.tasks.task.Task`; None for this one.
    """

    address: str
    data_dir: str | None = None
    device: str = "cpu"
    tensorboard: str | None = None
    process_group: str | None = None

    @property
    def ranks(self) -> Ranks:
        """The processes, for one run."""
        return find_ranks(self.process_group, torch.device(self.device))


def perform(place: Place, record: Record, progress: Update) -> str:
    """Carry out a run unless it is complete, and write it to the store. Of several processes the first one writes.

    Returns:
        Its state: `"complete"`, `"failed"`, or `"busy"` where another process is at it.

    Raises:
        StoreError: If the store cannot be written to.
    """
    store, run, ranks = Store(place.address), record.identity, place.ranks
    writes = ranks.rank == 0
    with store.claimed(run) if writes else nullcontext(True) as mine:
        found = ranks.gather("the state of a run", lambda: store.status(run).state if mine else "busy")[0]
        if found in ("busy", "complete"):
            return found
        try:
            with ranks.attended(), to_itself(torch.device(place.device)) if record.timed and writes else nullcontext():
                if writes:
                    store.begin(record)
                _carry_out(store, record, place, progress)
                ranks.each("the end of a run", lambda: None)
        except Exception as error:
            if not writes:
                return "failed"
            try:
                store.fail(run, error, machine=describe_machine(torch.device(place.device)))
            except OSError as second:
                raise StoreError(f"{place.address}: cannot be written to ({second})") from error
            return "failed"
    return "complete"


def _carry_out(store: Store, record: Record, place: Place, progress: Update) -> None:
    training = record if isinstance(record, Training) else store.training(record.training)
    problem, data = load_problem_data(training, place)
    with threads(problem.cpu_threads if data.train.inputs.device.type == "cpu" else None):
        if isinstance(record, Training):
            _train(store, record, problem, data, place, progress)
        else:
            _resume(store, record, problem, data, place, progress)


def _train(store: Store, record: Training, problem: Problem, data: Data, place: Place, progress: Update) -> None:
    run = record.identity
    ranks = place.ranks
    written = ranks.gather("the checkpoints so far", lambda: store.checkpoints(run))[0]

    def keep(number: int, checkpoint: Checkpoint) -> None:
        if ranks.rank == 0:
            store.save_checkpoint(run, number, checkpoint)

    curve = train(
        problem,
        data,
        epochs=problem.epochs,
        seed=record.seed,
        progress=progress,
        keep=keep,
        since=store.checkpoint(run, written[-1]) if written else None,
    )
    if ranks.rank > 0:
        return
    log_curve(place.tensorboard, f"{problem.name}/training, seed {record.seed}", curve)
    store.complete(
        run,
        curve,
        machine=describe_machine(data.train.inputs.device),
        metric={name: getattr(problem.metric, name) for name in ("name", "higher_is_better", "percent")},
        examples={"train": len(data.train), "test": len(data.test)},
    )


def _resume(store: Store, record: LateRun, problem: Problem, data: Data, place: Place, progress: Update) -> None:
    checkpoint = store.checkpoint(record.training, record.checkpoint)
    ranks = place.ranks
    strategy = _strategy(record, problem, len(data.train) // ranks.count)
    seconds = float(store.curve(record.training)["seconds"].iloc[-1])
    allowance = Budget.parse(record.budget).allowance(seconds)

    def go(allowance: Allowance, progress: Update) -> Run:
        return resume(
            problem, data, checkpoint.network, strategy, allowance=allowance, seed=record.seed, progress=progress
        )

    warm = (record.training, strategy.name, place.device)
    if allowance.unit == "seconds" and warm not in _WARM:
        # What only a process's first steps do is on nobody's clock: one step, which is taken back.
        go(Allowance(1e-9, "seconds"), lambda fraction, remark: None)
        _WARM.add(warm)
    result = go(allowance, progress)
    if ranks.rank > 0:
        return
    log_curve(place.tensorboard, f"{problem.name}/{record.title}", result.curve, result.records)
    store.complete(
        record.identity,
        result.curve,
        result.records,
        result.network,
        machine=describe_machine(data.train.inputs.device),
        allowance=allowance._asdict(),
    )


_WARM: set[tuple[str, str, str]] = set()


def _strategy(record: LateRun, problem: Problem, examples: int) -> Strategy:
    """Return the strategy that a run is of.

    Raises:
        ValueError: If its settings are others than when the run was planned.
    """
    strategy = find_strategy(record.reference, problem, examples)
    if strategy.settings() != record.settings:
        raise ValueError(
            f"strategy {record.strategy!r} is now {strategy.settings()}, and the run was to be {record.settings}"
        )
    return strategy


def load_problem_data(training: Training, place: Place) -> tuple[Problem, Data]:
    """Return the problem that a training is on, and its data on the device.

    Raises:
        ProblemError: If that is no problem to train on, see `check_data` and `check_network`, or no longer the one of
            the training, see `problem_of`.
    """
    whatever_its_length = replace(training, seed=0, epochs=1)  # problem and data are the same
    problem, data = _loaded(whatever_its_length, place.data_dir, place.device)
    return replace(problem, epochs=training.epochs, process_group=place.process_group), data


@lru_cache(maxsize=1)
def _loaded(training: Training, data_dir: str | None, device: str) -> tuple[Problem, Data]:
    problem = problem_of(training)
    with threads(None):
        data = check_data(problem, problem.load_data(None if data_dir is None else Path(data_dir)))
        check_network(problem)
    return problem, data.to(torch.device(device))
