"""Which errors of a closure mean that there is no loss at a trial point."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.distributions import Normal

from latephase.failures import is_failed_trial


def raises_by_itself() -> None:
    raise ValueError("a mistake")


@pytest.mark.parametrize(
    ("fails", "failed_trial"),
    [
        (lambda: torch.linalg.cholesky(-torch.eye(2)), True),
        (lambda: Normal(0.0, torch.tensor(-1.0), validate_args=True), True),
        (raises_by_itself, False),
        (lambda: torch.ones(2) @ torch.ones(3), False),
    ],
)
def test_values_without_a_loss_are_told_from_mistakes(fails: Callable[[], object], failed_trial: bool) -> None:
    with pytest.raises((ValueError, RuntimeError)) as raised:
        fails()
    assert is_failed_trial(raised.value) is failed_trial
