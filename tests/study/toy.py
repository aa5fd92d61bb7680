"""A problem small enough to train in a moment, in float64 so that comparisons can be sharp."""

import torch
from torch import nn

from latephase.study.data import Data, Split
from latephase.study.problems import Problem


def build_model():
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def load_data(folder=None):
    generator = torch.Generator().manual_seed(0)

    def split(n):
        inputs = torch.randn(n, 1, 2, 2, generator=generator, dtype=torch.float64)
        return Split(inputs, inputs.flatten(1)[:, :3].argmax(dim=1))

    return Data(split(60), split(30))


TOY = Problem(
    name="toy",
    build_model=build_model,
    load_data=load_data,
    lr=0.5,
    batch_size=8,
    epochs=2,
    weight_decay=0.01,
    curvature_batch=16,
    gradient_batch=32,
    evaluation_batch=20,
    cpu_threads=1,
)


def build():
    """What the command line is given: `…/toy.py:build`."""
    return TOY


REFERENCE = f"{__file__}:build"


def silent(fraction, remark):
    """Report progress to nobody."""
