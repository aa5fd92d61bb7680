"""Which exceptions of a closure mean that there is no loss at a trial point, rather than that something is wrong."""

from __future__ import annotations

import traceback
from pathlib import Path

import torch


def is_failed_trial(error: Exception) -> bool:
    """Return whether a closure failed on the values of the parameters that it was given.

    A matrix that has no factorisation (`torch.linalg`), or a value that a distribution does not allow
    (`torch.distributions`). Such a trial point counts as infinitely bad.
    """
    if isinstance(error, torch.linalg.LinAlgError):  # type: ignore[attr-defined]
        return True
    frames = traceback.extract_tb(error.__traceback__)
    return isinstance(error, ValueError) and bool(frames) and "distributions" in Path(frames[-1].filename).parts
