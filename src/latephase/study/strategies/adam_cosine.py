"""Adam with a learning rate that falls along half a cosine: the first-order finish to compare with."""

import torch

from latephase.study.problems import Problem
from latephase.study.strategies.first_order import FirstOrder
from latephase.study.strategies.options import defaults
from latephase.study.strategies.schedules import cosine
from latephase.study.strategies.strategy import Declaration, Family
from latephase.study.strategies.style import Style

LR = 1e-3  # PyTorch's, and the one of Kingma and Ba 2015


def _build(name: str, problem: Problem, examples: int, *, lr: float = LR, **options: object) -> FirstOrder:
    return FirstOrder(name, torch.optim.Adam, lr, cosine, options)


_STYLE = Style("#3f7d20", "#8fd16a", (7.0, 1.5, 1.0, 1.5), "d")
DECLARATIONS = (
    Declaration("adam_cosine", Family.FIRST_ORDER, _STYLE, _build, tuple(defaults(torch.optim.Adam)), default=False),
)
