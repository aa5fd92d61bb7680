"""Steps by factorisation: the damped model solved to rounding, λ measured rather than fed back, and accelerated."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from latephase.checks import non_negative_integer, positive_integer
from latephase.parts.corrections import Deviation, corrected
from latephase.parts.solver import DampedProblem, NoSolutionError, Path
from latephase.parts.system import System, mean_of
from latephase.parts.trials import Trial, check_trials, search
from latephase.records import CGStop

OTHER = 10.0  # gradients that a step costs besides its matrix: rows of the Jacobian, corrections, trial losses
MULTIPLICATIONS = 80.0  # of a matrix product, per parameter and sample, that take as long as a gradient


def in_gradients(rows: int, samples: int, size: int) -> float:
    """Return about how many gradients the matrix of a direct solve takes as long as, given its size.

    It takes rows · P · size multiplications, of which 80 · P · samples take as long as a gradient.

    >>> in_gradients(rows=2000, samples=2000, size=1200)
    15.0
    """
    return rows * size / (MULTIPLICATIONS * samples)


def matrix_size(rows: int, parameters: int, *, alike: bool) -> int:
    """Return the size of the matrix: that of the smaller space, if it may be row space.

    Args:
        rows: Of the Jacobian.
        parameters: P.
        alike: Whether λ and weight decay are the same for all parameters: row space needs one number.
    """
    return min(rows, parameters) if alike else parameters


def all_alike(problem: DampedProblem) -> bool:
    """Return whether λ and weight decay are the same for all parameters."""
    return isinstance(problem.curvature.shift, float) and isinstance(problem.damping, float)


def system_of(problem: DampedProblem, choose: Callable[[int, int], float], *, alike: bool) -> System:
    """Return the equations of a step, in the smaller of the two spaces where there is a choice.

    Args:
        problem: The problem.
        choose: See `Curvature.factor`.
        alike: As for `matrix_size`. Where λ and weight decay are in truth not the same, their mean stands for them.

    Raises:
        NoSolutionError: If there are none.
    """
    if problem.preconditioner is not None:
        raise NoSolutionError("a direct solve takes no preconditioner; use solver='cg'")
    factor = problem.curvature.factor(choose)
    if isinstance(factor, str):
        raise NoSolutionError(f"a direct solve is not possible ({factor})")
    in_rows = matrix_size(len(factor.R), problem.b.numel(), alike=alike) < problem.b.numel()
    if in_rows:
        factor = factor._replace(shift=mean_of(factor.shift))
    return System(factor, -problem.b, in_rows=in_rows)


@dataclass(frozen=True)
class Direct:
    """Solve for the step by a Cholesky factorisation, in the smaller of parameter space (P×P) and row space (M×M).

    λ is searched by trial losses, from the last one down or up for as long as the loss gets lower: each trial is one
    more factorisation of the same matrix. Steps follow the outputs' curve, see `corrected`.

    Attributes:
        corrections: Most corrections of a step, ≥ 0. With 1 it is geodesic acceleration, with 0 the linear model's.
        largest: The largest matrix to factorise, in rows; where both spaces are larger there is no step.
        gradients: The most that the matrix may cost, see `in_gradients`. Infinite for no limit.
        spacing: The factor between two λ that are tried, above 1.
        trials: Most λ per step.

    >>> import torch
    >>> from latephase import HessianFree
    >>> x, y = torch.tensor([[1.0, 0.0], [1.0, 1.0], [1.0, 2.0]]), torch.tensor([1.0, 3.0, 5.0])
    >>> theta = torch.nn.Parameter(torch.zeros(2))
    >>> def forward():
    ...     outputs = x @ theta
    ...     return (outputs - y).square().mean(), outputs
    >>> opt = HessianFree([theta], solver=Direct())
    >>> round(opt.step(forward), 6)  # a line through three points: λ goes down to where it does not matter
    0.0
    >>> opt.last_step.solver, opt.last_step.damping, round(opt.last_step.next_damping, 6)
    ('direct, 2 × 2', 1.0, 0.0)
    """

    measures_damping: ClassVar[bool] = True
    corrections: int = 10
    largest: int = 6000
    gradients: float = math.inf
    spacing: float = 4.0
    trials: int = 12

    def __post_init__(self) -> None:
        positive_integer("largest", self.largest)
        if not self.gradients > 0.0:
            raise ValueError(f"gradients must be > 0, not {self.gradients!r}")
        non_negative_integer("corrections", self.corrections)
        check_trials(self.spacing, self.trials)

    def accepts(self, rows: int, samples: int, size: int) -> bool:
        """Whether a matrix of this size, of so many rows of so many samples, is not too large."""
        return size <= self.largest and in_gradients(rows, samples, size) <= self.gradients

    def __call__(self, problem: DampedProblem) -> Path:
        """See `Solver`."""
        return self.explore(problem)[0]

    def explore(self, problem: DampedProblem) -> tuple[Path, float]:
        """The same, and what it cost, about, in gradients; infinite where a number is not finite."""
        P, alike, matrices = problem.b.numel(), all_alike(problem), 0.0

        def accept(rows: int, samples: int) -> float:
            nonlocal matrices
            size = matrix_size(rows, P, alike=alike)
            matrices = in_gradients(rows, samples, size)
            if not self.accepts(rows, samples, size):
                many = f"{rows} rows of {samples} samples are more than the solver takes"
                if rows < size:
                    many = f"parameters have different λ or weight decay, and {P} are more than the solver takes"
                raise NoSolutionError(f"a direct solve is not possible ({many})", one_each=rows == samples)
            return 1.0

        system = system_of(problem, accept, alike=alike)
        matrices *= system.share
        if not system.finite:
            return Path({}, 0.0, stop=CGStop.NON_FINITE), math.inf
        best = search(
            lambda factor: self._trial(problem, system, factor),
            problem.loss_0,
            spacing=self.spacing,
            most=self.trials,
        )
        path = best.path(problem.loss_0, 1, CGStop.SOLVED, f"direct, {len(system.K)} × {len(system.K)}")
        return replace(path, matrices=matrices), OTHER + matrices

    def _trial(self, problem: DampedProblem, system: System, factor: float) -> Trial:
        """The step for `factor` · λ, and the loss after it."""
        damped = system.damped(factor * problem.damping)
        if damped is None:
            return Trial(factor, problem.b, math.inf, 0.0)
        v = damped.step()
        step = corrected(v, lambda p: self._deviation(problem, system, p), damped.of_rows, most=self.corrections)
        return Trial(factor, step, problem.loss_at(step), predicted=-0.5 * float(problem.b.dot(v)))

    @staticmethod
    def _deviation(problem: DampedProblem, system: System, p: Tensor) -> Deviation:
        """√H (z(θ + p) − z(θ)) − Rp; the merit is half the sum of squares of ρ + √H (z(θ + p) − z(θ))."""
        change = problem.curvature.change(p).double()
        return Deviation(change - system.R @ p.double(), lambda: 0.5 * float((system.rho + change).square().sum()))
