"""Steps by factorisation: the damped model solved to rounding, λ measured rather than fed back, and accelerated."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from latephase.checks import boolean, positive, positive_integer
from latephase.parts.solver import DampedProblem, NoSolutionError, Path
from latephase.parts.system import System
from latephase.records import CGStop


class Trial(NamedTuple):
    """A step for λ times a factor, the loss after it, and what the model promised."""

    factor: float
    step: Tensor
    loss: float
    predicted: float


@dataclass(frozen=True)
class Direct:
    """Solve for the step by a Cholesky factorisation, in the smaller of parameter space (P×P) and row space (M×M).

    λ is searched by trial losses, from the last one down or up for as long as the loss gets lower: each trial is one
    more factorisation of the same matrix. A step is bent along the curve that the outputs take: with v the solution
    of the damped model and a that of the same system for the second derivative of the outputs along v, it is
    v − ½a (geodesic acceleration, Transtrum & Sethna 2012), unless that leads too far from v.

    Attributes:
        accelerate: Whether steps are bent.
        largest: The largest matrix to factorise, in rows; where both spaces are larger there is no step.
        spacing: The factor between two λ that are tried, above 1.
        trials: Most λ per step.
        bend: A step is bent where ½‖a‖ ≤ bend · ‖v‖.
    """

    accelerate: bool = True
    largest: int = 6000
    spacing: float = 4.0
    trials: int = 12
    bend: float = 0.75

    def __post_init__(self) -> None:
        boolean("accelerate", self.accelerate)
        positive_integer("largest", self.largest)
        positive_integer("trials", self.trials)
        positive("bend", self.bend)
        if not positive("spacing", self.spacing) > 1.0:
            raise ValueError(f"spacing must be above 1, not {self.spacing!r}")

    def __call__(self, problem: DampedProblem) -> Path:
        """See `Solver`."""
        P, loss_0 = problem.b.numel(), problem.loss_0
        factor = problem.curvature.factor(lambda M: min(M, P) <= self.largest)
        if isinstance(factor, str):
            raise NoSolutionError(f"a direct solve is not possible: {factor}")
        one_number = isinstance(factor.shift, float) and isinstance(problem.damping, float)
        system = System(factor, -problem.b, in_rows=one_number and len(factor.R) < P)
        if not system.finite:
            return Path({}, 0.0, stop=CGStop.NON_FINITE)
        best = self._search(lambda factor: self._trial(problem, system, factor), loss_0)
        if not best.loss < loss_0:
            return Path({}, 0.0, damping_factor=best.factor)
        return Path({1: best.step}, best.predicted, 1, CGStop.SOLVED, damping_factor=best.factor, losses={1: best.loss})

    def _search(self, trial: Callable[[float], Trial], loss_0: float) -> Trial:
        """Try λ times powers of the spacing, down while the loss gets lower, else up; return the best trial."""
        best, tried = trial(1.0), 1
        for ratio in (1.0 / self.spacing, self.spacing):
            if ratio < 1.0 and not best.loss < loss_0:
                continue  # too long already
            start = best
            while tried < self.trials:
                following, tried = trial(best.factor * ratio), tried + 1
                if best.loss < loss_0 and not following.loss < best.loss:
                    break
                best = following
            if best is not start:
                break
        return best

    def _trial(self, problem: DampedProblem, system: System, factor: float) -> Trial:
        """The step for ``factor`` · λ, and the loss after it."""
        damped = system.damped(factor * problem.damping)
        if damped is None:
            return Trial(factor, problem.b, math.inf, 0.0)
        step = v = damped.step()
        if self.accelerate:
            a = damped.of_rows(problem.curvature.second(v))
            bent = v - 0.5 * a
            if 0.5 * float(a.norm()) <= self.bend * float(v.norm()) and float(problem.b.dot(bent)) > 0.0:
                step = bent
        return Trial(factor, step, problem.loss_at(step), predicted=-0.5 * float(problem.b.dot(v)))
