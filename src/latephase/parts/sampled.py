"""A direct solve for a sample of the rows, which the outputs of all then correct: where all are too many."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from latephase.checks import positive, positive_integer
from latephase.parts.anderson import anderson
from latephase.parts.direct import MULTIPLICATIONS, OTHER, in_gradients, system_of
from latephase.parts.solver import DampedProblem, NoSolutionError, Path
from latephase.parts.system import Damped, System, mean_of
from latephase.parts.trials import Trial, check_trials, search
from latephase.records import CGStop

PILOT = 1 / 8  # of the largest sample, that tells how large a sample is needed


@dataclass(frozen=True)
class Sampled:
    """Factorise the curvature of a sample, and with its inverse solve for the step that all samples want.

    The step p for which the outputs move as the damped model wants them to satisfies JᵀH (z(θ + p) − z(θ)) + λp = b,
    see `corrected`. With S = (RᵀR + λI)⁻¹ of a sample's rows R its iteration is p ← p + S (b − JᵀH (z(θ + p) − z(θ)) −
    λp), by `anderson`, as S goes astray where the sample has seen nothing. An iteration takes a forward and a backward
    pass over all samples, and no product; corrects for the sample and for the outputs' curve at once; and ends when the
    loss does not get lower. λ is searched as by `Direct`. Where parameters have a λ or a weight decay of their own, S
    has the mean of them, and the equation their own.

    The more λ damps the fewer rows are needed: a small sample shows how many dimensions λ leaves free. A larger one has
    all rows of a smaller one, and those of one size are the same in every step.

    Attributes:
        gradients: The most that the sample's matrix may cost, in gradients on all samples, above 0.
        largest: The largest matrix to factorise, in rows.
        redundancy: Rows for each dimension that λ leaves free, up to the largest sample; ≥ 1.
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
    >>> losses = [opt.step(forward) for _ in range(3)]
    >>> losses[-1] < 1e-12, opt.last_step.solver
    (True, 'direct on 31 of 100 rows, ... corrections with all')
    """

    measures_damping: ClassVar[bool] = True
    gradients: float = 5.0
    largest: int = 6000
    redundancy: float = 16.0
    iterations: int = 15
    spacing: float = 4.0
    trials: int = 12

    def __post_init__(self) -> None:
        positive("gradients", self.gradients)
        positive_integer("largest", self.largest)
        positive_integer("iterations", self.iterations)
        if not self.redundancy >= 1.0:
            raise ValueError(f"redundancy must be ≥ 1, not {self.redundancy!r}")
        check_trials(self.spacing, self.trials)

    def rows(self, samples: int, parameters: int) -> int:
        """How many rows the sample may have, of so many samples."""
        most = MULTIPLICATIONS * samples * self.gradients
        in_rows = min(math.isqrt(int(most)), self.largest)
        return max(1, in_rows if in_rows <= parameters else int(most / parameters))

    def accepts(self, rows: int, samples: int, size: int) -> bool:
        """Whether a matrix of this size is not too large: none is, as fewer rows will do."""
        return True

    def __call__(self, problem: DampedProblem) -> Path:
        """See `Solver`."""
        return self.explore(problem)[0]

    def explore(self, problem: DampedProblem) -> tuple[Path, float]:
        """The same, and what it cost, about, in gradients; infinite where a number is not finite."""
        sample = _Sample(self, problem)
        if not sample.system.finite:
            return Path({}, 0.0, stop=CGStop.NON_FINITE), math.inf
        trials = _Trials(problem, sample, self.iterations)
        best = search(trials, problem.loss_0, spacing=self.spacing, most=self.trials)
        method = f"direct on {len(sample.system.R)} of {sample.found} rows, {trials.moves} corrections with all"
        path = best.path(problem.loss_0, 1, CGStop.SOLVED, method)
        price = OTHER + sample.matrices + 1.5 * trials.moves  # a gradient and a loss each
        return replace(path, matrices=sample.matrices), price


class _Sample:
    """The equations of a sample that grows with the dimensions that λ leaves free.

    A pilot, a share of the largest sample, tells how many these are. It is enough where it has half the rows it should.

    Attributes:
        system: The equations of the sample as it is.
        found: Of how many rows it is.
        most: Rows of the largest.
        matrices: What matrices have cost, in gradients.
    """

    def __init__(self, solver: Sampled, problem: DampedProblem) -> None:
        self._solver, self._problem = solver, problem
        self.found, self.most, self.matrices = 0, 0, 0.0
        self.system = self._of(0.0)
        self._spectrum = self.system.spectrum() if self.system.finite else self.system.rho

    def damped(self, damping: float | Tensor) -> Damped | None:
        """Factorise for one λ, with rows enough for it."""
        lam = self.system.shift + damping
        needed = self._solver.redundancy * float((self._spectrum / (self._spectrum + mean_of(lam))).sum())
        if needed > 2.0 * len(self.system.R) and len(self.system.R) < self.most:
            del self.system  # its memory is needed
            self.system = self._of(needed)
        return self.system.damped(mean_of(damping) if self.system.in_rows else damping)

    def _of(self, needed: float) -> System:
        P, price = self._problem.b.numel(), 0.0

        def choose(rows: int, samples: int) -> float:
            nonlocal price
            self.found, self.most = rows, min(rows, self._solver.rows(samples, P))
            chosen = math.ceil(min(self.most, max(needed, PILOT * self.most)))
            price = in_gradients(chosen, samples, min(chosen, P))
            return chosen / rows

        system = system_of(self._problem, choose, alike=True)
        self.matrices += price * system.share
        return system


class _Trials:
    """Steps for several λ from a sample, with the losses after them."""

    def __init__(self, problem: DampedProblem, sample: _Sample, iterations: int) -> None:
        self._problem, self._sample, self._iterations = problem, sample, iterations
        self.moves = 0

    def __call__(self, factor: float) -> Trial:
        """The step for `factor` · λ, and the loss after it."""
        lam, b = factor * self._problem.damping, self._problem.b
        damped = self._sample.damped(lam)
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
