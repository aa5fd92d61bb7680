"""The solver for whoever does not want to choose: direct where that pays, else on a sample, or by gradients."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

from latephase.parts.direct import Direct
from latephase.parts.hybrid import Hybrid
from latephase.parts.krylov import Krylov
from latephase.parts.quasi_newton import QuasiNewton
from latephase.parts.sampled import Sampled
from latephase.parts.solver import DampedProblem, NoSolutionError, Path


@dataclass(frozen=True)
class Auto:
    """Factorise all rows where that is possible and pays; else a sample of them; else take quasi-Newton steps.

    Where samples have many outputs each, steps are gradients alone for as long as that brings something.

    All of it follows from sizes, and from what the state remembers, so that a resumed run chooses alike.

    Attributes:
        direct: The solver by factorisation, and how many gradients that may cost; by gradients where it brings little.
        sampled: The solver for more than that, where each sample has one residual, likewise.
        regression: The same where that has no rows, either.
        other: The solver for all else.

    >>> import torch
    >>> from latephase import HessianFree
    >>> x, y = torch.tensor([[1.0, 0.0], [1.0, 1.0], [1.0, 2.0]]), torch.tensor([1.0, 3.0, 5.0])
    >>> def forward():
    ...     outputs = x @ theta
    ...     return (outputs - y).square().mean(), outputs
    >>> for solver in Auto(), Auto(direct=Direct(largest=1)):
    ...     theta = torch.nn.Parameter(torch.zeros(2))
    ...     opt = HessianFree([theta], solver=solver)
    ...     loss = opt.step(forward)
    ...     print(opt.last_step.solver)
    direct, 2 × 2
    direct on 3 of 3 rows, ... corrections with all, as a direct solve is not possible (3 rows of 3 samples ...)
    """

    measures_damping: ClassVar[bool] = True
    direct: Direct | Hybrid = field(default_factory=lambda: Hybrid(Direct(gradients=50.0)))
    sampled: Sampled | Hybrid = field(default_factory=lambda: Hybrid(Sampled()))
    regression: Krylov = field(default_factory=Krylov)
    other: QuasiNewton = field(default_factory=QuasiNewton)

    def __call__(self, problem: DampedProblem) -> Path:
        """See `Solver`."""
        try:
            return self.direct(problem)
        except NoSolutionError as error:
            path = self._regression(problem) if error.one_each else self.other(problem)
            return replace(path, method=f"{path.method}, as {error}")

    def _regression(self, problem: DampedProblem) -> Path:
        try:
            return self.sampled(problem)
        except NoSolutionError:
            return self.regression(problem)
