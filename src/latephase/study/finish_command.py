"""`latephase finish`: what is wrong with its arguments is said of them before anything is trained."""

import inspect
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import typer

from latephase import FinishReport, finish
from latephase.distributed import RankError
from latephase.finishing.checkpoint import load_checkpoint
from latephase.study.own import find_function

ALLOWED = tuple(inspect.signature(finish).parameters)
NEEDED = ("model", "loss_func")


class FinishCommand:
    """A finish that is asked for on the command line.

    Args:
        build: `path/to/my_module.py:build` or `package.module:build`.
        checkpoint: File to load into what it builds; None for none.
        to: File for the result.

    Attributes:
        page: File for the report.
        speaks: Whether this process writes and prints: of those that torchrun has started, the first.

    Raises:
        typer.BadParameter: If one of them cannot be used.
    """

    def __init__(self, build: str, checkpoint: str | None, to: Path) -> None:
        try:
            if ":" not in build:
                raise ValueError(f"{build!r} names no function; expected path/to/my_module.py:build")
            self._arguments = _checked(find_function(build)(), build)
        except (ValueError, ImportError) as error:
            raise typer.BadParameter(str(error), param_hint="BUILD") from error
        if checkpoint is not None:
            try:
                load_checkpoint(checkpoint, self._arguments["model"], self._arguments.get("optimizer"))
            except ValueError as error:
                raise typer.BadParameter(str(error), param_hint="--checkpoint") from error
        self._to, self.page = to, to.with_suffix(".html")
        self.speaks = not _by_torchrun() or os.environ["RANK"] == "0"
        try:
            to.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise typer.BadParameter(str(error), param_hint="--to") from error

    def run(self, budget: str, **options: Any) -> FinishReport:
        """Finish, and write the model's state dict and the report.

        Returns:
            The report.

        Raises:
            typer.BadParameter: If the budget or what was built cannot be used.
        """
        with _processes(next(self._arguments["model"].parameters()).device) as group:
            try:
                report = finish(**{"process_group": group, **self._arguments, **options, "budget": budget})
            except (TypeError, ValueError, RankError) as error:
                raise typer.BadParameter(str(error)) from error
        if self.speaks:
            torch.save(self._arguments["model"].state_dict(), self._to)
            report.to_html(self.page)
        return report


@contextmanager
def _processes(device: torch.device) -> Iterator[str | None]:
    """The group of those that torchrun has started; None without it."""
    if not _by_torchrun():
        yield None
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield "world"
    finally:
        dist.destroy_process_group()


def _by_torchrun() -> bool:
    return dist.is_available() and dist.is_torchelastic_launched()


def _checked(built: object, source: str) -> dict[str, Any]:
    if not isinstance(built, dict) or not set(NEEDED) <= set(built):
        raise ValueError(f"{source} must return a dictionary with {' and '.join(NEEDED)}, not {type(built).__name__}")
    unknown = [name for name in built if name not in ALLOWED]
    if unknown:
        raise ValueError(f"{source} returned {', '.join(map(repr, unknown))}; there are: {', '.join(ALLOWED)}")
    return built
