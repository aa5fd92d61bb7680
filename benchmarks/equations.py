"""The study's equations at a size that two cores solve in a minute: a third of the width, a fifth of the points.

latephase study benchmarks/equations.py:wave --epochs 3000 --budget 60s --checkpoint last --out runs
"""

from latephase.study.problems import burgers as of_burgers
from latephase.study.problems import convection as of_convection
from latephase.study.problems import reaction as of_reaction
from latephase.study.problems import wave as of_wave
from latephase.study.problems.problem import Problem

WIDTH, INSIDE = 40, 2000


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
