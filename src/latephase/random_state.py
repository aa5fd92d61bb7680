"""The random number streams that a closure may draw from: PyTorch's, Python's and NumPy's."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor


class RandomState(NamedTuple):
    """Where the process's random number streams stand.

    Attributes:
        torch: States of the default generators of the CPU and, if it is a GPU, of the device.
        python: State of the module `random`.
        numpy: State of NumPy's global generator; None where nobody has imported NumPy.
    """

    torch: list[Tensor]
    python: Any
    numpy: Any


def read_random_state(device: torch.device) -> RandomState:
    """Return where all streams stand."""
    numpy = sys.modules.get("numpy")
    return RandomState(rng_state(device), random.getstate(), None if numpy is None else numpy.random.get_state())


def write_random_state(device: torch.device, state: RandomState) -> None:
    """Go back to a state that `read_random_state` returned for the same device."""
    set_rng_state(device, state.torch)
    random.setstate(state.python)
    if state.numpy is not None:
        sys.modules["numpy"].random.set_state(state.numpy)


def rng_state(device: torch.device) -> list[Tensor]:
    """Return the state of the default random number generators of the CPU and, if it is a GPU, of the device."""
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return states


def set_rng_state(device: torch.device, states: list[Tensor]) -> None:
    """Go back to a state that `rng_state` returned for the same device."""
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)


def seed(device: torch.device, value: int) -> None:
    """Start all streams anew from a number."""
    torch.default_generator.manual_seed(value)
    if device.type == "cuda":
        index = device.index if device.index is not None else torch.cuda.current_device()
        torch.cuda.default_generators[index].manual_seed(value)
    random.seed(value)
    if sys.modules.get("numpy") is not None:
        sys.modules["numpy"].random.seed(value % 2**32)


def rewind(generator: object) -> Callable[[], None] | None:
    """A function that takes a generator of its own back to where it stands now; None for anything else."""
    if isinstance(generator, torch.Generator):
        state = generator.get_state()
        return partial(_set_torch_state, generator, state)
    if isinstance(generator, random.Random):
        python_state = generator.getstate()
        return lambda: generator.setstate(python_state)
    if type(generator).__module__.startswith("numpy.random"):
        return _rewind_numpy(generator)
    return None


def _set_torch_state(generator: torch.Generator, state: Tensor) -> None:
    generator.set_state(state)


def _rewind_numpy(generator: Any) -> Callable[[], None] | None:
    bits = getattr(generator, "bit_generator", getattr(generator, "_bit_generator", None))
    if bits is None:
        return None
    state = bits.state
    return lambda: setattr(bits, "state", state)
