"""The study's equations at a size that two cores solve in a minute: a third of the width, a fifth of the points.

latephase study benchmarks/equations.py:wave --epochs 2000 --budget 120s --checkpoint last --out runs

Those whose names end in `_single` are the same in float32; those of Poisson's equation that end in `_many` have 11,250
points, which are too many for one matrix.
"""

from dataclasses import replace

import torch

from latephase.study.problems import burgers as of_burgers
from latephase.study.problems import convection as of_convection
from latephase.study.problems import reaction as of_reaction
from latephase.study.problems import wave as of_wave
from latephase.study.problems.poisson_2d import poisson_2d
from latephase.study.problems.problem import Problem
from latephase.tasks.split import Data, Split

WIDTH, INSIDE = 40, 2000
MANY = 10_000, 1250  # inside, and on the edge


def convection() -> Problem:
    """Return convection at β = 40: 3,441 parameters, 2,358 residuals."""
    return of_convection.convection(WIDTH, INSIDE)


def reaction() -> Problem:
    """Return reaction at ρ = 5: 3,441 parameters, 2,358 residuals."""
    return of_reaction.reaction(WIDTH, INSIDE)


def wave() -> Problem:
    """Return the wave equation: 3,441 parameters, 2,716 residuals."""
    return of_wave.wave(WIDTH, INSIDE)


def burgers() -> Problem:
    """Return Burgers' equation with its own width of 20: 3,021 parameters, 2,100 residuals."""
    return of_burgers.burgers(inside=INSIDE)


def poisson_many() -> Problem:
    """Return Poisson's equation on the square: 9,873 parameters, 11,250 residuals."""
    return poisson_2d("poisson_many", (64, 64, 48, 48), MANY)


def poisson_116k_many() -> Problem:
    """Return the same for 116,097 parameters."""
    return poisson_2d("poisson_116k_many", (256, 256, 128, 128), MANY)


def convection_single() -> Problem:
    """Return `convection` in float32."""
    return in_single(convection())


def reaction_single() -> Problem:
    """Return `reaction` in float32."""
    return in_single(reaction())


def wave_single() -> Problem:
    """Return `wave` in float32."""
    return in_single(wave())


def burgers_single() -> Problem:
    """Return `burgers` in float32."""
    return in_single(burgers())


def in_single(problem: Problem) -> Problem:
    """Return the problem with network and data in float32."""

    def load_data(folder: object) -> Data:
        data = problem.load_data(None)
        return Data(*(Split(split.inputs.float(), split.targets.float()) for split in (data.train, data.test)))

    def build_model() -> torch.nn.Module:
        return problem.build_model().float()

    return replace(problem, name=f"{problem.name}_single", build_model=build_model, load_data=load_data)
