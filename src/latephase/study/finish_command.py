"""`latephase finish`: what is wrong with its arguments is said of them before anything is trained."""

import inspect
from pathlib import Path
from typing import Any

import torch
import typer

from latephase import FinishReport, finish
from latephase.distributed import RankError
from latephase.finishing.checkpoint import load_checkpoint
from latephase.study.own import find_function
from latephase.study.processes import is_first, joined

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
        self.speaks = is_first()
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
        with joined(next(self._arguments["model"].parameters()).device) as group:
            try:
                report = finish(**{"process_group": group, **self._arguments, **options, "budget": budget})
            except (TypeError, ValueError, RankError) as error:
                raise typer.BadParameter(str(error)) from error
        if self.speaks:
            torch.save(self._arguments["model"].state_dict(), self._to)
            report.to_html(self.page)
        return report


def _checked(built: object, source: str) -> dict[str, Any]:
    if not isinstance(built, dict) or not set(NEEDED) <= set(built):
        raise ValueError(f"{source} must return a dictionary with {' and '.join(NEEDED)}, not {type(built).__name__}")
    unknown = [name for name in built if name not in ALLOWED]
    if unknown:
        raise ValueError(f"{source} returned {', '.join(map(repr, unknown))}; there are: {', '.join(ALLOWED)}")
    return built
