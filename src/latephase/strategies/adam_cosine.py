"""Adam with a learning rate that falls along half a cosine: the first-order finish to compare with."""

import torch

from latephase.strategies.first_order import FirstOrder
from latephase.strategies.options import defaults
from latephase.strategies.schedules import cosine
from latephase.strategies.strategy import Declaration, Family
from latephase.strategies.style import Style
from latephase.tasks.task import Task

LR = 1e-3  # PyTorch's, and the one of Kingma and Ba 2015


def _build(name: str, task: Task, examples: int, *, lr: float = LR, **options: object) -> FirstOrder:
    return FirstOrder(name, torch.optim.Adam, lr, cosine, options)


_STYLE = Style("#3f7d20", "#8fd16a", (7.0, 1.5, 1.0, 1.5), "d")
DECLARATIONS = (
    Declaration("adam_cosine", Family.FIRST_ORDER, _STYLE, _build, tuple(defaults(torch.optim.Adam)), default=False),
)
