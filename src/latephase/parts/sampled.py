"""A direct solve for a sample of the rows, which the outputs of all then correct: where all are too many."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from latephase.checks import positive, positive_integer
from latephase.parts.anderson import anderson
from latephase.parts.direct import MULTIPLICATIONS, OTHER, in_gradients, mean_of, system_of
from latephase.parts.solver import DampedProblem, NoSolutionError, Path
from latephase.parts.system import System
from latephase.parts.trials import Trial, check_trials, search
from latephase.records import CGStop


@dataclass(frozen=True)
class Sampled:
    """Factorise the curvature of a sample, and with its inverse solve for the step that all samples want.

    The step p for which the outputs move as the damped model wants them to satisfies JᵀH (z(θ + p) − z(θ)) + λp = b,
    see `corrected`. With S = (RᵀR + λI)⁻¹ of a sample's rows R its iteration is p ← p + S (b − JᵀH (z(θ + p) − z(θ)) −
    λp), by `anderson`, as S goes astray where the sample has seen nothing. An iteration takes a forward and a backward
    pass over all samples, and no product; corrects for the sample and for the outputs' curve at once; and ends when the
    loss does not get lower. λ is searched as by `Direct`. The sample is the same in every step. Where parameters have
    a λ or a weight decay of their own, S has the mean of them, and the equation their own.

    Attributes:
        gradients: The most that the sample's matrix may cost, in gradients on all samples, above 0.
        largest: The largest matrix to factorise, in rows.
        iterations: Most iterations for one λ.
        spacing: The factor between two λ that are tried, above 1.
        trials: Most λ per step.

    >>> import torch
    >>> from latephase import HessianFree
    >>> x = torch.linspace(0.0, 1.0, 100, dtype=torch.float64)
    >>> theta = torch.nn.Parameter(torch.ones(2, dtype=torch.float64))
    >>> def forward():
    ...     outputs = theta[0] * torch.exp(theta[1] * x)
    ...     return (outputs - 2.0 * torch.exp(-3.0 * x)).square().mean(), outputs
    >>> opt = HessianFree([theta], solver=Sampled(gradients=0.01))
    >>> opt.step(forward), opt.step(forward) < 1e-12
    (0.02..., True)
    >>> opt.last_step.solver
    'direct on 40 of 100 rows, ... corrections with all'
    """

    measures_damping: ClassVar[bool] = True
    gradients: float = 5.0
    largest: int = 6000
    iterations: int = 15
    spacing: float = 4.0
    trials: int = 12

    def __post_init__(self) -> None:
        positive("gradients", self.gradients)
        positive_integer("largest", self.largest)
        positive_integer("iterations", self.iterations)
        check_trials(self.spacing, self.trials)

    def rows(self, samples: int, parameters: int) -> int:
        """How many rows the sample may have, of so many samples."""
        most = MULTIPLICATIONS * samples * self.gradients
        in_rows = min(math.isqrt(int(most)), self.largest)
        return in_rows if in_rows <= parameters else int(most / parameters)

    def accepts(self, rows: int, samples: int, size: int) -> bool:
        """Whether a matrix of this size is not too large: none is, as fewer rows will do."""
        return True

    def __call__(self, problem: DampedProblem) -> Path:
        """See `Solver`."""
        return self.explore(problem)[0]

    def explore(self, problem: DampedProblem) -> tuple[Path, float]:
        """The same, and what it cost, about, in gradients; infinite where a number is not finite."""
        P = problem.b.numel()
        found, matrices = 0, 0.0

        def choose(rows: int, samples: int) -> float:
            nonlocal found, matrices
            found, chosen = rows, max(1, min(rows, self.rows(samples, P)))
            matrices = in_gradients(chosen, samples, min(chosen, P))
            return chosen / rows

        system = system_of(problem, choose, alike=True)
        if not system.finite:
            return Path({}, 0.0, stop=CGStop.NON_FINITE), math.inf
        trials = _Trials(problem, system, self.iterations)
        best = search(trials, problem.loss_0, spacing=self.spacing, most=self.trials)
        method = f"direct on {len(system.R)} of {found} rows, {trials.moves} corrections with all"
        path = best.path(problem.loss_0, 1, CGStop.SOLVED, method)
        return replace(path, matrices=matrices), OTHER + matrices + 1.5 * trials.moves  # a gradient and a loss each


class _Trials:
    """Steps for several λ from one factor of the sample, with the losses after them."""

    def __init__(self, problem: DampedProblem, system: System, iterations: int) -> None:
        self._problem, self._system, self._iterations = problem, system, iterations
        self.moves = 0

    def __call__(self, factor: float) -> Trial:
        """The step for `factor` · λ, and the loss after it."""
        lam, b = factor * self._problem.damping, self._problem.b
        damped = self._system.damped(mean_of(lam) if self._system.in_rows else lam)
        if damped is None:
            return Trial(factor, b, math.inf, 0.0)

        def move(p: Tensor) -> Tensor:
            self.moves += 1
            change = self._problem.curvature.pulled_change(p)
            if change is None:
                raise NoSolutionError("the outputs at other parameters are not known for all samples at once")
            return damped.inverse(b - change - lam * p)

        v = damped.inverse(b)
        step, loss = anderson(v, move, self._problem.loss_at, most=self._iterations)
        return Trial(factor, step, loss, predicted=-0.5 * float(b.dot(v)))
