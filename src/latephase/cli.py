"""`latephase …` on the command line."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from latephase.study.command import Command, EngineName, command_at
from latephase.study.finish_command import FinishCommand
from latephase.study.problems import PROBLEMS
from latephase.study.runs.experiments import Place
from latephase.study.show import tables
from latephase.study.show.figures import demo_figure
from latephase.study.show.saving import save

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown"
)


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
Checkpoint = Annotated[str, typer.Option(help="From which checkpoints: last, all, or numbers with commas between.")]
Strategies = Annotated[
    str | None,
    typer.Option(
        help="Names with commas between, such as `sgd_cosine,hf_m1024`, each with options if need be, "
        "`'hf_m1024(damping=0.1)'`; also optimizers of torch.optim and pytorch_optimizer, `'adamw(lr=0.001, "
        "schedule=cosine)'`, and your own, `my_file.py:strategy`, a function that returns one. By default all of the "
        "paper's that there are examples enough for, and more.",
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
    """Train a problem's network, and keep ten checkpoints."""
    with command_at(Place(out, data_dir, device, tensorboard), quiet=quiet) as command:
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
    with command_at(place, quiet=quiet, engine=engine, cpus=cpus, gpus=gpus) as command:
        command.resume(command.trainings(), checkpoint, strategies, seeds, budget)
        command.leave()


@app.command()
def status(folder: Folder) -> None:
    """Say what a folder of runs holds: which are complete, which are not, and why."""
    Command(Place(folder), quiet=True).status()


@app.command()
def report(
    folder: Folder,
    to: Annotated[str | None, typer.Option(help="Folder to write to; by default the folder of runs.")] = None,
    quiet: Quiet = False,
) -> None:
    """Write `report.html` and `figures/` (SVG and PNG) from the runs that a folder holds."""
    command = Command(Place(folder), quiet=quiet)
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
    """Train, resume from the checkpoints with each strategy, report: the three in a row.

    Processes that torchrun has started (`torchrun --nproc-per-node 2 -m latephase study …`) take each step together,
    each on its share of the examples and with batches of the problem's size.
    """
    place = Place(out, data_dir, device, tensorboard)
    with command_at(place, quiet=quiet, engine=engine, cpus=cpus, gpus=gpus) as command:
        training = command.train(problem, seed, epochs)
        command.resume([training], checkpoint, strategies, seeds, budget)
        command.report(out)
        command.leave()


@app.command()
def finish(
    build: Annotated[
        str,
        typer.Argument(
            help="`my_module.py:build`: a function that returns a dictionary of what `latephase.finish` takes: model, "
            "loss_func, train_data, and as it pleases valid_data, optimizer, batch_size, …",
            show_default=False,
        ),
    ],
    budget: Annotated[
        str, typer.Option(help="`90s`, `10min`, `2h`, or counted work, `300gradients`.", show_default=False)
    ],
    checkpoint: Annotated[
        str | None, typer.Option(help="File with the model's state dict, and the optimizer's if need be.")
    ] = None,
    to: Annotated[str, typer.Option(help="File for the finished model's state dict.")] = "finished.pt",
    out: Annotated[
        str | None, typer.Option(help="Folder that keeps where the finish stands: the same command goes on there.")
    ] = None,
    seed: Seed = 0,
    quiet: Quiet = False,
) -> None:
    """End a training: try what helps for a small part of the budget, and spend the rest on that.

    Writes the best state of the model to a file, and a report next to it. Processes that torchrun has started
    (`torchrun --nproc-per-node 2 -m latephase finish …`) take each step together.
    """
    command = FinishCommand(build, checkpoint, Path(to))
    report = command.run(budget, out=out, seed=seed, progress=not quiet)
    if command.speaks:
        Console().print(f"{report}\nnetwork: {to}\nreport: {command.page}", highlight=False, soft_wrap=True)


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
    with command_at(Place(out, data_dir, device), quiet=quiet) as command:
        training = command.train(problem, seed, epochs)
        command.resume([training], "last", DEMO_STRATEGIES, seeds, budget)
        results = command.results()
        command.console.print(tables.summary_tables(results))
        figure = demo_figure(results) if command.writes else None
        if figure is not None:
            save(figure, Path(out) / "demo")
            command.console.print(f"figure: {Path(out) / 'demo.png'}", soft_wrap=True, highlight=False)
        command.leave()
