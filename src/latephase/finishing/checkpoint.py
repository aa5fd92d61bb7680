"""A training's checkpoint on disk, in the forms that people write."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

MODEL_KEYS = ("model", "model_state_dict", "state_dict", "network")
OPTIMIZER_KEYS = ("optimizer", "optimizer_state_dict")


def load_checkpoint(path: str | os.PathLike[str], model: nn.Module, optimizer: torch.optim.Optimizer | None) -> None:
    """Load a checkpoint into a network, and into its optimizer where the file has a state for that.

    Args:
        path: A file of `torch.save` with a network's state dict, or with a dictionary that has one under one of
            `MODEL_KEYS`, and an optimizer's under one of `OPTIMIZER_KEYS`. Nothing in it is executed.
        model: The network.
        optimizer: Its optimizer.

    Raises:
        ValueError: If there is no state dict in it, or one of another network; the message says what is there.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ValueError(f"there is no checkpoint {os.fspath(path)}") from None
    except Exception as error:
        raise ValueError(f"{os.fspath(path)} is no file of tensors and numbers; save state dicts") from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{os.fspath(path)} must hold a state dict, not {type(content).__name__}")
    try:
        model.load_state_dict(_found(content, MODEL_KEYS, content))
    except (RuntimeError, TypeError, AttributeError) as error:
        raise ValueError(f"{os.fspath(path)} is not of this network: {error}") from error
    state = _found(content, OPTIMIZER_KEYS, None)
    if optimizer is not None and state is not None:
        optimizer.load_state_dict(state)


def _found(content: Mapping[str, Any], keys: tuple[str, ...], otherwise: Any) -> Any:
    return next((content[key] for key in keys if isinstance(content.get(key), Mapping)), otherwise)
