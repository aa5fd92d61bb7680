"""All streams of random numbers go back to where they stood."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch

from latephase.random_state import read_random_state, rewind, seed, write_random_state

CPU = torch.device("cpu")


def drawn() -> tuple[float, float, float]:
    return torch.rand(()).item(), random.random(), float(np.random.rand())


def test_a_state_that_was_read_can_be_gone_back_to() -> None:
    state = read_random_state(CPU)
    first = drawn()
    assert drawn() != first
    write_random_state(CPU, state)
    assert drawn() == first


def test_a_seed_starts_all_streams_anew() -> None:
    state = read_random_state(CPU)
    seed(CPU, 2**40 + 1)
    first = drawn()
    seed(CPU, 2**40 + 2)
    other = drawn()
    seed(CPU, 2**40 + 1)
    assert drawn() == first
    assert all(a != b for a, b in zip(first, other, strict=True))
    write_random_state(CPU, state)


@pytest.mark.parametrize(
    ("generator", "draw"),
    [
        (torch.Generator(), lambda generator: torch.rand((), generator=generator).item()),
        (random.Random(0), lambda generator: generator.random()),
        (np.random.default_rng(0), lambda generator: generator.random()),
        (np.random.RandomState(0), lambda generator: generator.rand()),
    ],
)
def test_a_generator_of_its_own_is_taken_back(generator: object, draw: Callable[[object], float]) -> None:
    back = rewind(generator)
    assert back is not None
    first = draw(generator)
    assert draw(generator) != first
    back()
    assert draw(generator) == first


@pytest.mark.parametrize("other", [3, "text", np.random.rand, torch.ones(1)])
def test_what_is_no_generator_has_nothing_to_take_back(other: object) -> None:
    assert rewind(other) is None
