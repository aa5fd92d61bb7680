"""``latephase …`` on the command line."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from importlib import import_module
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from latephase.study import tables
from latephase.study.budget import Budget
from latephase.study.data import DataError
from latephase.study.engines import Engine, RayEngine, local_engine
from latephase.study.experiments import Place, describe, load_problem_data, run_configs, training_config
from latephase.study.figures import demo_figure, save, save_all
from latephase.study.problems import PROBLEMS
from latephase.study.problems.check import ProblemError
from latephase.study.progress import Reporter
from latephase.study.report import write_report
from latephase.study.results import Results, load_results
from latephase.study.store import Config, Store, StoreError, identify
from latephase.study.threads import threads

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown"
)


class EngineName(str, Enum):
    """Where runs are carried out."""

    LOCAL = "local"
    RAY = "ray"


ProblemName = Annotated[
    str,
    typer.Argument(
        help="A problem of `latephase problems`, or your own: `my_problem.py:build`, a function that returns a "
        "`latephase.study.problems.Problem`.",
        show_default=False,
    ),
]
Out = Annotated[str, typer.Option(help="Folder of runs; made if need be. Any address that fsspec knows.")]
Folder = Annotated[str, typer.Argument(help="A folder of runs.", show_default=False)]
DataDir = Annotated[str | None, typer.Option(help="Folder with the data; by default they come from the hub.")]
Device = Annotated[str, typer.Option(help="Where to compute: cpu, cuda, cuda:1, …")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Show no progress.")]
TensorBoard = Annotated[str | None, typer.Option(help="Folder for TensorBoard's logs.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of the training.")]
Epochs = Annotated[int | None, typer.Option(min=1, help="Epochs of training; by default the problem's.")]
Checkpoint = Annotated[str, typer.Option(help="From which checkpoints: last, all, or a number.")]
Strategies = Annotated[
    str | None,
    typer.Option(
        help="Names with commas between, such as `sgd_cosine,hf_m1024`; also optimizers of torch.optim and "
        "pytorch_optimizer, `'adamw(lr=0.001, schedule=cosine)'`. By default all of the paper's that there are "
        "examples enough for, and more.",
        show_default=False,
    ),
]
Seeds = Annotated[int, typer.Option(min=1, help="Runs of each strategy from each checkpoint.")]
BudgetText = Annotated[
    str,
    typer.Option(
        "--budget",
        help="What a run may spend: a share of the training's seconds (`10%`), seconds (`30s`), or counted work "
        "(`200gradients`), with which runs repeat to the bit.",
    ),
]
EngineOption = Annotated[EngineName, typer.Option(help="Run here, or on a Ray cluster (RAY_ADDRESS).")]
Cpus = Annotated[float | None, typer.Option(min=0, help="With ray: CPUs that a run takes.", show_default=False)]
Gpus = Annotated[float | None, typer.Option(min=0, help="With ray: GPUs that a run takes.", show_default=False)]


@app.callback()
def main() -> None:
    """Finish the training of neural networks.

    The study of *Late-Phase Second-Order Training* (Tatzel, Hennig, Schneider 2022), on its problems or yours: train
    with SGD, resume from checkpoints with competing strategies under one budget, score, plot, report.

    Every command can be interrupted, and goes on where it was when it is given again.
    """


@app.command()
def problems() -> None:
    """List the test problems."""
    Console().print(tables.problems_table(list(PROBLEMS.values())))


@app.command()
def table1() -> None:
    """Print the hyper-parameters of the trainings: the paper's Table 1, with those of the other problems."""
    Console().print(tables.table1(list(PROBLEMS.values())))


@app.command()
def train(
    problem: ProblemName,
    out: Out,
    seed: Seed = 0,
    epochs: Epochs = None,
    data_dir: DataDir = None,
    device: Device = "cpu",
    tensorboard: TensorBoard = None,
    quiet: Quiet = False,
) -> None:
    """Train a problem's network with SGD, and keep ten checkpoints."""
    command = _Command(Place(out, data_dir, device, tensorboard), quiet=quiet)
    command.train(problem, seed, epochs)
    command.leave()


@app.command()
def resume(
    folder: Folder,
    checkpoint: Checkpoint = "last",
    strategies: Strategies = None,
    seeds: Seeds = 5,
    budget: BudgetText = "10%",
    data_dir: DataDir = None,
    device: Device = "cpu",
    engine: EngineOption = EngineName.LOCAL,
    cpus: Cpus = None,
    gpus: Gpus = None,
    tensorboard: TensorBoard = None,
    quiet: Quiet = False,
) -> None:
    """Go on from the checkpoints of a folder's trainings, with each strategy and seed, for the same budget."""
    place = Place(folder, data_dir, device, tensorboard)
    command = _Command(place, quiet=quiet, engine=engine, cpus=cpus, gpus=gpus)
    command.resume(command.trainings(), checkpoint, strategies, seeds, budget)
    command.leave()


@app.command()
def report(
    folder: Folder,
    to: Annotated[str | None, typer.Option(help="Folder to write to; by default the folder of runs.")] = None,
    quiet: Quiet = False,
) -> None:
    """Write `report.html` and `figures/` (SVG and PNG) from the runs that a folder holds."""
    command = _Command(Place(folder), quiet=quiet)
    command.report(folder if to is None else to)


@app.command()
def study(
    problem: ProblemName,
    out: Out,
    checkpoint: Checkpoint = "all",
    strategies: Strategies = None,
    seeds: Seeds = 5,
    budget: BudgetText = "10%",
    seed: Seed = 0,
    epochs: Epochs = None,
    data_dir: DataDir = None,
    device: Device = "cpu",
    engine: EngineOption = EngineName.LOCAL,
    cpus: Cpus = None,
    gpus: Gpus = None,
    tensorboard: TensorBoard = None,
    quiet: Quiet = False,
) -> None:
    """Train, resume from the checkpoints with each strategy, report: the three in a row."""
    place = Place(out, data_dir, device, tensorboard)
    command = _Command(place, quiet=quiet, engine=engine, cpus=cpus, gpus=gpus)
    training = command.train(problem, seed, epochs)
    command.resume([training], checkpoint, strategies, seeds, budget)
    command.report(out)
    command.leave()


DEMO_STRATEGIES = "sgd_constant,sgd_tenth,sgd_cosine,hf_equal,hf_large"


@app.command()
def demo(
    problem: Annotated[str, typer.Option(help="What to train.")] = "digits_cnn",
    out: Out = "latephase-demo",
    seeds: Seeds = 3,
    budget: BudgetText = "10%",
    seed: Seed = 0,
    epochs: Epochs = None,
    data_dir: DataDir = None,
    device: Device = "cpu",
    quiet: Quiet = False,
) -> None:
    """Train with SGD; then, from the last checkpoint and for the same time, finish in five ways.

    Prints a table, and draws train loss and test accuracy over the budget.
    """
    command = _Command(Place(out, data_dir, device), quiet=quiet)
    training = command.train(problem, seed, epochs)
    command.resume([training], "last", DEMO_STRATEGIES, seeds, budget)
    results = command.results()
    command.console.print(tables.summary_tables(results))
    figure = demo_figure(results)
    if figure is not None:
        save(figure, Path(out) / "demo")
        command.console.print(f"figure: {Path(out) / 'demo.png'}", soft_wrap=True, highlight=False)
    command.leave()


class _Command:
    """One command at work on a folder of runs."""

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
        self.console = Console()
        self._reporter = Reporter(self.console, quiet=quiet)
        self._place = place
        self._made: list[str] = []
        with _blaming("the folder of runs", ValueError, ImportError):
            self._store = Store(place.address)
        with _blaming("--device", RuntimeError):
            torch.zeros(1, device=place.device)
        if place.tensorboard is not None:
            with _blaming("--tensorboard", ImportError):
                import_module("torch.utils.tensorboard")  # better refused now than after the training
        self._engine: Engine = local_engine(self._reporter)
        if engine is EngineName.RAY:
            with _blaming("--engine", ImportError):
                self._engine = RayEngine(self._reporter, cpus=cpus, gpus=gpus)

    def train(self, problem: str, seed: int, epochs: int | None) -> str:
        """Make sure of a complete training, and return its name."""
        with _blaming("PROBLEM", ValueError):
            config = training_config(problem, epochs=epochs, seed=seed, device=self._place.device)
        with _blaming("--data-dir", DataError), _blaming("PROBLEM", ProblemError):
            chosen, _ = load_problem_data(config, self._place)
        with threads(None):
            size = sum(t.nbytes for t in chosen.build_model().state_dict().values())
        with _blaming("--out", StoreError):
            self._store.prepare(needed=12 * size)
        training = identify(config)
        self._make([config])
        self.leave()
        return training

    def trainings(self) -> list[str]:
        """Return the names of the folder's complete trainings."""
        statuses = {run: self._store.status(run) for run in self._store.ids()}
        found = [run for run, s in statuses.items() if s.state == "complete" and s.config["kind"] == "training"]
        if not found:
            raise typer.BadParameter(
                f"{self._place.address} holds no complete training; "
                f"latephase train PROBLEM --out {self._place.address} makes one"
            )
        return found

    def resume(self, trainings: list[str], checkpoint: str, strategies: str | None, seeds: int, budget: str) -> None:
        """Make sure of the late-phase runs that are asked for."""
        configs: list[Config] = []
        with _blaming("--budget", ValueError):
            allowed = Budget.parse(budget)
        for training in trainings:
            with _blaming("--data-dir", DataError), _blaming("the training's problem", ProblemError):
                load_problem_data(self._store.config(training), self._place)
            with _blaming("--checkpoint or --strategies", ValueError):
                configs += run_configs(
                    self._store,
                    training,
                    place=self._place,
                    checkpoint=checkpoint,
                    strategies=strategies,
                    seeds=seeds,
                    budget=allowed,
                )
        self._make(configs)

    def _make(self, configs: list[Config]) -> None:
        missing = [config for config in configs if self._store.status(identify(config)).state != "complete"]
        self._made += map(identify, missing)
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

    def report(self, to: str) -> None:
        """Write the page and the figures."""
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
            text = f"{run} ({describe(status.config)}) {status.state}: {status.details.get('error')}"
            self.console.print(text, style="red", soft_wrap=True, markup=False, highlight=False)
        if failed:
            raise typer.Exit(1)


@contextmanager
def _blaming(what: str, *errors: type[Exception]) -> Iterator[None]:
    """Turn those errors in the block into a message about an option or argument."""
    try:
        yield
    except errors as error:
        raise typer.BadParameter(str(error), param_hint=what) from None
