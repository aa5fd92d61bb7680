"""The study as a list of runs: what each is, how one is carried out, and which are still to be made."""

import hashlib
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from latephase.study.budget import Allowance, Budget
from latephase.study.catalogue import default_strategies, find_strategy, parse_strategies
from latephase.study.clock import to_itself
from latephase.study.data import Data
from latephase.study.machine import describe_machine
from latephase.study.problems import Problem, find_problem
from latephase.study.problems.check import check_data, check_network
from latephase.study.progress import Update
from latephase.study.runner import Run, resume
from latephase.study.store import Config, Store, StoreError, identify
from latephase.study.strategies import Strategy
from latephase.study.tensorboard import log_curve
from latephase.study.threads import threads
from latephase.study.training import train


@dataclass(frozen=True)
class Place:
    """Where runs are carried out: what they depend on, but their results do not.

    Attributes:
        address: The folder of runs.
        data_dir: Where the data are; None for their default place.
        device: What to compute on.
        tensorboard: Folder for TensorBoard's logs, or None.
    """

    address: str
    data_dir: str | None = None
    device: str = "cpu"
    tensorboard: str | None = None


# ---------------------------------------------------------------------- what a run is


def training_config(reference: str, *, epochs: int | None, seed: int, device: str) -> Config:
    """Return the configuration of a training.

    Args:
        reference: What `find_problem` knows the problem by.
        epochs: Its length; None for the problem's own.
        seed: For first weights, batches and dropout.
        device: Kind of device; results differ in rounding between kinds.
    """
    problem = find_problem(reference)
    epochs = problem.epochs if epochs is None else epochs
    path = Path(reference.rpartition(":")[0])
    code = {"code": hashlib.sha256(path.read_bytes()).hexdigest()} if path.suffix == ".py" else {}
    return {
        "kind": "training",
        "problem": {"reference": reference, **problem.settings(), "epochs": epochs, **code},
        "seed": seed,
        "device": torch.device(device).type,
        "latephase": version("latephase"),
    }


def run_config(training: str, checkpoint: int, strategy: Strategy, seed: int, budget: Budget) -> Config:
    """Return the configuration of a late-phase run from a training's checkpoint."""
    return {
        "kind": "run",
        "training": training,
        "checkpoint": checkpoint,
        "strategy": strategy.settings(),
        "seed": seed,
        "budget": str(budget),
        "latephase": version("latephase"),
    }


def run_configs(
    store: Store, training: str, *, place: Place, checkpoint: str, strategies: str | None, seeds: int, budget: Budget
) -> list[Config]:
    """Return the configurations of all late-phase runs that are asked for.

    Args:
        store: Holds the training.
        training: A complete training.
        place: Where the data are.
        checkpoint: ``"last"``, ``"all"`` or a number.
        strategies: Names with commas between, see `parse_strategies`; None for all.
        seeds: How many of each.
        budget: Of each.

    Raises:
        ValueError: For a checkpoint or strategy that there is not.
    """
    problem, data = load_problem_data(store.config(training), place)
    examples = len(data.train)
    chosen = (
        default_strategies(problem, examples) if strategies is None else parse_strategies(strategies, problem, examples)
    )
    return [
        run_config(training, number, strategy, seed, budget)
        for number in _chosen_checkpoints(store.checkpoints(training), checkpoint)
        for seed in range(seeds)  # outside the strategies, so that a busy spell of the machine hits all alike
        for strategy in chosen
    ]


def _chosen_checkpoints(there_are: Sequence[int], wanted: str) -> Sequence[int]:
    if wanted == "all":
        return there_are
    if wanted == "last":
        return there_are[-1:]
    if wanted.isdigit() and int(wanted) in there_are:
        return [int(wanted)]
    raise ValueError(
        f"there is no checkpoint {wanted!r}; there are: last, all, {', '.join(str(number) for number in there_are)}"
    )


# ---------------------------------------------------------------------- how a run is carried out


def perform(place: Place, config: Config, progress: Update) -> str:
    """Carry out a run unless it is complete, and write it to the store.

    Returns:
        Its state: ``"complete"``, ``"failed"``, or ``"busy"`` where another process is at it.

    Raises:
        StoreError: If the store cannot be written to.
    """
    store, run = Store(place.address), identify(config)
    with store.claimed(run) as mine:
        if not mine:
            return "busy"
        if store.status(run).state == "complete":
            return "complete"
        carry_out = _train if config["kind"] == "training" else _resume
        try:
            store.begin(config)
            with to_itself(torch.device(place.device)) if is_timed(config) else nullcontext():
                problem, data = load_problem_data(_training_of(store, config), place)
                with threads(problem.cpu_threads if data.train.inputs.device.type == "cpu" else None):
                    carry_out(store, run, config, problem, data, place, progress)
        except Exception as error:
            try:
                store.fail(run, error, machine=describe_machine(torch.device(place.device)))
            except OSError as second:
                raise StoreError(f"{place.address}: cannot be written to ({second})") from error
            return "failed"
    return "complete"


def _training_of(store: Store, config: Config) -> Config:
    """Return the configuration of the training that a run is, or begins from."""
    return config if config["kind"] == "training" else store.config(config["training"])


def _train(
    store: Store, run: str, config: Config, problem: Problem, data: Data, place: Place, progress: Update
) -> None:
    written = store.checkpoints(run)
    curve = train(
        problem,
        data,
        epochs=problem.epochs,
        seed=config["seed"],
        progress=progress,
        keep=lambda number, checkpoint: store.save_checkpoint(run, number, checkpoint),
        since=store.checkpoint(run, written[-1]) if written else None,
    )
    log_curve(place.tensorboard, f"{problem.name}/training, seed {config['seed']}", curve)
    store.complete(
        run,
        curve,
        machine=describe_machine(data.train.inputs.device),
        metric={name: getattr(problem.metric, name) for name in ("name", "higher_is_better", "percent")},
        examples={"train": len(data.train), "test": len(data.test)},
    )


def _resume(
    store: Store, run: str, config: Config, problem: Problem, data: Data, place: Place, progress: Update
) -> None:
    checkpoint = store.checkpoint(config["training"], config["checkpoint"])
    strategy = _strategy(config["strategy"], problem, len(data.train))
    seconds = float(store.curve(config["training"])["seconds"].iloc[-1])
    allowance = Budget.parse(config["budget"]).allowance(seconds)

    def go(allowance: Allowance, progress: Update) -> Run:
        return resume(
            problem, data, checkpoint.network, strategy, allowance=allowance, seed=config["seed"], progress=progress
        )

    warm = (config["training"], strategy.name, place.device)
    if allowance.unit == "seconds" and warm not in _WARM:
        # What only a process's first steps do is on nobody's clock: one step, which is taken back.
        go(Allowance(1e-9, "seconds"), lambda fraction, remark: None)
        _WARM.add(warm)
    result = go(allowance, progress)
    log_curve(place.tensorboard, f"{problem.name}/{describe(config)}", result.curve, result.records)
    store.complete(
        run,
        result.curve,
        result.records,
        result.network,
        machine=describe_machine(data.train.inputs.device),
        allowance=allowance._asdict(),
    )


_WARM: set[tuple[str, str, str]] = set()


def is_timed(config: Config) -> bool:
    """Whether the result depends on the clock: a training's seconds are what budgets are a share of."""
    return config["kind"] == "training" or Budget.parse(config["budget"]).unit != "gradients"


def describe(config: Config) -> str:
    """Name a run for people."""
    if config["kind"] == "training":
        return f"{config['problem']['name']}, training, seed {config['seed']}"
    return f"{config['strategy']['name']}, checkpoint {config['checkpoint']}, seed {config['seed']}"


def _strategy(settings: dict[str, Any], problem: Problem, examples: int) -> Strategy:
    strategy = find_strategy(settings["name"], problem, examples)
    if strategy.settings() != settings:
        raise ValueError(
            f"strategy {settings['name']!r} is now {strategy.settings()}, and the run was to be {settings}"
        )
    return strategy


def load_problem_data(config: Config, place: Place) -> tuple[Problem, Data]:
    """Return the problem that a training is on, and its data on the device.

    Raises:
        ProblemError: If that is no problem to train on, see `check_data` and `check_network`.
    """
    settings = config["problem"]
    problem, data = _loaded(settings["reference"], place.data_dir, place.device)
    return replace(problem, epochs=settings["epochs"]), data


@lru_cache(maxsize=1)
def _loaded(reference: str, data_dir: str | None, device: str) -> tuple[Problem, Data]:
    problem = find_problem(reference)
    with threads(None):
        data = check_data(problem, problem.load_data(None if data_dir is None else Path(data_dir)))
        check_network(problem)
    return problem, data.to(torch.device(device))
