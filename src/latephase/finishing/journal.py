"""A finish on disk: where it stands, so that a process that is killed can be followed by another that goes on."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import torch

from latephase.random_state import RandomState, read_random_state, write_random_state

FILE = "finish.pt"


class Journal:
    """The folder of a finish.

    Args:
        folder: Made if need be; None for a finish that leaves nothing behind.
        identity: What must be the same for a finish to be the same, by what people call it.

    Attributes:
        lost: Why the last state could not be written; empty if it could.

    Raises:
        ValueError: If the folder holds another finish; the message says what differs.
        OSError: If the folder cannot be made.
    """

    def __init__(self, folder: str | os.PathLike[str] | None, identity: dict[str, Any]) -> None:
        self._path = None if folder is None else Path(folder) / FILE
        self._identity = identity
        self.lost = ""
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)

    def read(self) -> dict[str, Any] | None:
        """Return the state that was written last; None if there is none."""
        if self._path is None or not self._path.exists():
            return None
        try:
            content = torch.load(self._path, weights_only=True)
        except Exception as error:
            raise ValueError(f"{self._path} is no finish that can be read; move it away") from error
        differ = [name for name, value in self._identity.items() if content["identity"].get(name) != value]
        if differ:
            raise ValueError(
                f"{self._path} is of another finish, with other {', '.join(differ)}; give out another folder, or move "
                "this one away"
            )
        state: dict[str, Any] = content["state"]
        return state

    def write(self, state: dict[str, Any]) -> None:
        """Write the state whole or not at all. Where that fails the finish goes on without, and a warning says so."""
        if self._path is None:
            return
        part = self._path.with_suffix(".part")
        try:
            torch.save({"identity": self._identity, "state": state}, part)
            part.replace(self._path)
            self.lost = ""
        except (OSError, RuntimeError) as error:  # a full disk is a RuntimeError to PyTorch
            part.unlink(missing_ok=True)
            if not self.lost:
                warnings.warn(f"where the finish stands could not be written ({error}); it goes on", stacklevel=2)
            self.lost = str(error)


def random_to_plain(device: torch.device) -> dict[str, Any]:
    """Return where the process's random number streams stand, in tensors and what JSON holds."""
    state = read_random_state(device)
    python = [state.python[0], list(state.python[1]), state.python[2]]
    numpy = None if state.numpy is None else [state.numpy[0], state.numpy[1].tolist(), *state.numpy[2:]]
    return {"torch": state.torch, "python": python, "numpy": numpy}


def random_from_plain(device: torch.device, plain: dict[str, Any]) -> None:
    """Go back to there."""
    kind, words, gauss = plain["python"]
    numpy = None if plain["numpy"] is None else tuple(plain["numpy"])
    write_random_state(device, RandomState(plain["torch"], (kind, tuple(words), gauss), numpy))
