"""What a solver is asked, the damped quadratic model of the objective, and what it answers: steps to try."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from latephase.records import CGStop
from latephase.vectors import plus_scaled

Operator = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class DampedProblem:
    """Minimise φ(p) = ½ pᵀ(G + λI)p − bᵀp, where b is the negative gradient. Vectors have shape (P,).

    Attributes:
        curvature: `v -> Gv`.
        b: The right-hand side −g.
        damping: λ ≥ 0, a number or a vector of shape (P,).
        last_solution: What minimised the last step's model; None where nothing is remembered. The solver may
            overwrite it.
        preconditioner: `v -> Mv`, an approximation of (G + λI)⁻¹; None for none.
        loss_at: `p -> L(θ + p)` on the evaluation batch, for solvers that judge trial steps themselves.
        wanted: From the largest number of iterations to the numbers of those whose iterates may be asked for.
        asynchronous: Whether to read a number waits for a device's queue.

    >>> import torch
    >>> DampedProblem(curvature=lambda v: 3.0 * v, b=torch.ones(2), damping=1.0).product(torch.tensor([1.0, 2.0]))
    tensor([4., 8.])
    """

    curvature: Operator
    b: Tensor
    damping: float | Tensor
    last_solution: Tensor | None = None
    preconditioner: Operator | None = None
    loss_at: Callable[[Tensor], float] | None = None
    wanted: Callable[[int], frozenset[int]] = field(default=lambda most: frozenset())
    asynchronous: bool = False

    def product(self, v: Tensor) -> Tensor:
        """Return (G + λI)v."""
        return plus_scaled(self.curvature(v), self.damping, v)


@dataclass(frozen=True)
class Path:
    """Steps {p_n} that a solver proposes: the larger n, the closer to the minimum of the model.

    Attributes:
        steps: n → p_n of shape (P,), in increasing order of n; empty where no direction of descent was found.
        predicted: φ of the last of them: the model's change from zero, negative.
        iterations: How many it took.
        stop: Why they ended.
        warm_started: Whether they began at the last solution rather than at zero.

    >>> import torch
    >>> path = Path({1: torch.tensor([0.5]), 4: torch.tensor([0.7])}, predicted=-1.2, iterations=4)
    >>> path.last, path.steps[path.last]
    (4, tensor([0.7000]))
    """

    steps: Mapping[int, Tensor]
    predicted: float
    iterations: int = 0
    stop: CGStop | None = None
    warm_started: bool = False

    @property
    def last(self) -> int:
        """The number of the last step."""
        return max(self.steps)

    @property
    def statistics(self) -> dict[str, Any]:
        """What a step's record says of it."""
        return {"cg_iterations": self.iterations, "cg_stop": self.stop, "warm_started": self.warm_started}


class Solver(Protocol):
    """Finds steps that lower the damped quadratic model.

    Steepest descent, for example:

    >>> def steepest_descent(problem: DampedProblem) -> Path:
    ...     b = problem.b
    ...     length = b.dot(b) / b.dot(problem.product(b))
    ...     return Path({1: length * b}, predicted=-0.5 * float(length * b.dot(b)), iterations=1)
    >>> import torch
    >>> solver: Solver = steepest_descent
    >>> solver(DampedProblem(curvature=lambda v: 3.0 * v, b=torch.tensor([4.0]), damping=1.0)).steps
    {1: tensor([1.])}
    """

    def __call__(self, problem: DampedProblem) -> Path:
        """Return the steps to try; a number that is not finite ends them before it is used."""
