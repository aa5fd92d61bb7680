"""Muon for matrices (Jordan et al. 2024) and Adam for all else, with a learning rate that falls along half a cosine."""

from collections.abc import Iterable

import torch
from torch import nn

from latephase.strategies.first_order import FirstOrder
from latephase.strategies.options import defaults
from latephase.strategies.schedules import cosine
from latephase.strategies.strategy import Declaration, Family
from latephase.strategies.style import Style
from latephase.tasks.task import Task

LR = 1e-3  # that of Adam; Muon's steps are scaled to be of the same size (Liu et al. 2025)


class MuonAndAdam(torch.optim.Optimizer):
    """`torch.optim.Muon`, which takes matrices alone, and `torch.optim.Adam` for the other parameters.

    Args:
        groups: Parameter groups.
        lr: The learning rate of both.
        momentum: Muon's. (0.95: PyTorch's.)
    """

    def __init__(self, groups: Iterable[dict[str, list[nn.Parameter]]], lr: float = LR, momentum: float = 0.95) -> None:
        parameters = [p for group in groups for p in group["params"]]
        matrices = {"params": [p for p in parameters if p.dim() == 2]}
        others = {"params": [p for p in parameters if p.dim() != 2]}
        self._parts = (
            torch.optim.Muon([matrices], lr=lr, weight_decay=0.0, momentum=momentum, adjust_lr_fn="match_rms_adamw"),
            torch.optim.Adam([others], lr=lr),
        )
        super().__init__([group for part in self._parts for group in part.param_groups], {"lr": lr})

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Take a step of both, on the groups and with the memory of this one: so it can be saved and loaded."""
        for part, group in zip(self._parts, self.param_groups, strict=True):
            part.param_groups, part.state = [group], self.state
            part.step()


def _build(name: str, task: Task, examples: int, *, lr: float = LR, **options: object) -> FirstOrder:
    return FirstOrder(name, MuonAndAdam, lr, cosine, options)


_STYLE = Style("#a8326e", "#ec8fb8", (6.0, 1.2, 2.0, 1.2), "D")
_OPTIONS = tuple(defaults(MuonAndAdam))
DECLARATIONS = (Declaration("muon_cosine", Family.FIRST_ORDER, _STYLE, _build, _OPTIONS, default=False),)
