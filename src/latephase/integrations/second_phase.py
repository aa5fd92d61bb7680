"""What the integrations share: the second phase's optimizer, and what they log of its steps."""

from __future__ import annotations

from typing import Any

import torch

from latephase.finishing.task import l2
from latephase.optimizer import HessianFree
from latephase.records import StepRecord


def following(first: torch.optim.Optimizer, options: dict[str, Any], *, several: bool = False) -> HessianFree:
    """Return the optimizer that follows `first`, on its groups, with their L2 terms unless `weight_decay` is given.

    Args:
        first: Any of torch's.
        options: Those of `HessianFree`.
        several: Whether the framework trains in several processes, which take each step together then.
    """
    if several:
        options = {"process_group": "world", **options}
    keep = "weight_decay" not in options
    groups = [
        {"params": group["params"], **({"weight_decay": l2(first, group)} if keep else {})}
        for group in first.param_groups
    ]
    return HessianFree(groups, **options)


def logged(record: StepRecord) -> dict[str, float]:
    """Return the numbers of a step's record, as `hf/…`."""
    return {name: float(value) for name, value in record.as_dict("hf/").items() if not isinstance(value, str)}
