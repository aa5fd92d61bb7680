"""The demo: train with SGD, then finish from the same checkpoint in several ways, each with the same seconds."""

from dataclasses import dataclass
from pathlib import Path

from latephase.study.data import Data
from latephase.study.problems import Problem
from latephase.study.progress import Reporter
from latephase.study.runner import Run, resume
from latephase.study.strategies import HF_EQUAL, HF_LARGE, SGD_CONSTANT, SGD_COSINE, SGD_TENTH, Strategy
from latephase.study.training import Training, load_checkpoint, train

STRATEGIES: tuple[Strategy, ...] = (SGD_CONSTANT, SGD_TENTH, SGD_COSINE, HF_EQUAL, HF_LARGE)
BUDGET = 0.1  # of the training time (Tatzel et al. 2022, Section 3.1)


@dataclass(frozen=True)
class Comparison:
    """What the demo found.

    Attributes:
        training: The SGD training up to the checkpoint.
        budget: The seconds that each run had.
        runs: One for each strategy and seed.
    """

    training: Training
    budget: float
    runs: tuple[Run, ...]


def compare(
    problem: Problem,
    data: Data,
    out: Path,
    *,
    epochs: int,
    budget: float | None,
    seeds: range,
    reporter: Reporter,
) -> Comparison:
    """Train, write the checkpoint to ``out``, and resume from it with every strategy and seed.

    Args:
        problem: What to train.
        data: On the device to train on.
        out: An existing folder.
        epochs: Length of the training.
        budget: Seconds for each run; None means `BUDGET` of the training time.
        seeds: The first is also the training's.
        reporter: Shows the progress.
    """
    with reporter.task("train with sgd") as progress:
        training = train(problem, data, epochs=epochs, seed=seeds[0], progress=progress)
    checkpoint = out / "checkpoint.pt"
    training.save(checkpoint)
    budget = BUDGET * training.seconds if budget is None else budget

    with reporter.task("warm up") as progress:
        # What only a process's first steps do is on nobody's clock: one step of each strategy, which is taken back.
        for done, strategy in enumerate(STRATEGIES, start=1):
            resume(problem, data, training.state, strategy, budget=1e-9, seed=seeds[0], progress=_silent)
            progress(done / len(STRATEGIES), "not counted")

    runs = []
    for seed in seeds:  # the outer loop, so that a busy spell of the machine hits all strategies alike
        for strategy in STRATEGIES:
            with reporter.task(f"{strategy.name}, seed {seed}") as progress:
                state = load_checkpoint(checkpoint)
                runs.append(resume(problem, data, state, strategy, budget=budget, seed=seed, progress=progress))
    return Comparison(training, budget, tuple(runs))


def _silent(fraction: float, remark: str) -> None:
    pass
