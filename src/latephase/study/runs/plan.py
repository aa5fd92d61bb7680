"""Which runs are to be made. Nothing here needs the data: of a training the store knows how many there were."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from latephase.strategies.strategy import Strategy
from latephase.study.own import code_hash
from latephase.study.problems import PROBLEMS, Problem, find_problem
from latephase.study.problems.check import ProblemError
from latephase.study.runs.budget import Budget
from latephase.study.runs.records import LateRun, Training
from latephase.study.runs.store import Store
from latephase.study.strategies.catalogue import default_strategies, parse_strategies
from latephase.study.strategies.own import reference_of


def plan_training(reference: str, *, epochs: int | None, seed: int, device: str, processes: int = 1) -> Training:
    """Return what a training is to be.

    Args:
        reference: What `find_problem` knows the problem by.
        epochs: Its length; None for the problem's own.
        seed: For first weights, batches and dropout.
        device: What to compute on.
        processes: How many train together.
    """
    problem = find_problem(reference)
    return Training(
        reference=reference,
        problem=problem.name,
        lr=problem.lr,
        batch_size=problem.batch_size,
        epochs=problem.epochs if epochs is None else epochs,
        weight_decay=problem.weight_decay,
        first_phase=problem.first_phase,
        code=_code(reference),
        seed=seed,
        device=torch.device(device).type,
        processes=processes,
    )


def has_changed(training: Training) -> bool:
    """Say whether the file that builds a training's problem is not the one of the training."""
    return _code(training.reference) != training.code


def problem_of(training: Training) -> Problem:
    """Return the problem that a training is on.

    Raises:
        ProblemError: If the file that builds it is not the one of the training.
    """
    if has_changed(training):
        raise ProblemError(
            f"the problem file has changed since this training, or is gone ({training.reference}). Runs from its "
            "checkpoints would be on another problem: bring the file back, or train again with latephase train"
        )
    return replace(find_problem(training.reference), epochs=training.epochs)


def plan_run(training: str, checkpoint: int, strategy: Strategy, seed: int, budget: Budget) -> LateRun:
    """Return what a late-phase run from a training's checkpoint is to be."""
    return LateRun(
        training=training,
        checkpoint=checkpoint,
        reference=reference_of(strategy),
        strategy=strategy.name,
        family=strategy.family.value,
        settings=strategy.settings(),
        seed=seed,
        budget=str(budget),
    )


def plan_runs(
    store: Store, training: Training, *, checkpoint: str, strategies: str | None, seeds: int, budget: Budget
) -> list[LateRun]:
    """Return all late-phase runs that are asked for.

    Args:
        store: Holds the training.
        training: A complete training.
        checkpoint: `"last"`, `"all"`, or numbers with commas between.
        strategies: Names with commas between, see `parse_strategies`; None for all.
        seeds: How many of each.
        budget: Of each.

    Raises:
        ValueError: For a checkpoint or strategy that there is not.
        ProblemError: See `problem_of`.
    """
    problem, examples = problem_of(training), store.examples(training.identity) // training.processes
    chosen = (
        default_strategies(problem, examples) if strategies is None else parse_strategies(strategies, problem, examples)
    )
    return [
        plan_run(training.identity, number, strategy, seed, budget)
        for number in _chosen_checkpoints(store.checkpoints(training.identity), checkpoint)
        for seed in range(seeds)  # outside the strategies, so that a busy spell of the machine hits all alike
        for strategy in chosen
    ]


def _code(reference: str) -> str | None:
    return None if reference in PROBLEMS else code_hash(reference)


def _chosen_checkpoints(there_are: Sequence[int], wanted: str) -> Sequence[int]:
    if wanted == "all":
        return there_are
    if wanted == "last":
        return there_are[-1:]
    numbers = {str(number): number for number in there_are}
    chosen = [part.strip() for part in wanted.split(",")]
    for part in chosen:
        if part not in numbers:
            raise ValueError(f"there is no checkpoint {part!r}; there are: last, all, {', '.join(numbers)}")
    return sorted({numbers[part] for part in chosen})
