"""What a solver is asked, the damped quadratic model of the objective, and what it answers: steps to try."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from latephase.outer_rows import Rows
from latephase.records import CGStop
from latephase.vectors import plus_scaled

Operator = Callable[[Tensor], Tensor]


class NoSolutionError(RuntimeError):
    """A solver cannot work on this problem.

    Args:
        message: Why.
        one_each: Whether it is that there are too many rows, and each is a sample's only one.

    >>> NoSolutionError("10,000 rows are too many for a matrix of all", one_each=True).one_each
    True
    """

    def __init__(self, message: str, *, one_each: bool = False) -> None:
        super().__init__(message)
        self.one_each = one_each


class Factor(NamedTuple):
    """The curvature as a product, G = RᵀR + diag(shift), and the gradient as g = Rᵀρ + rest.

    Attributes:
        R: Shape (M, P): a tensor, or for large ones `OuterRows`, which have products with vectors, too, and `dense()`.
        rho: ρ, shape (M,).
        shift: ≥ 0, a number or a vector of shape (P,): weight decay.

    >>> import torch
    >>> factor = Factor(R=torch.tensor([[1.0, 2.0]]), rho=torch.tensor([0.5]), shift=0.1)
    >>> factor.R.T @ (factor.R @ torch.ones(2)) + factor.shift * torch.ones(2)
    tensor([3.1000, 6.1000])
    """

    R: Rows
    rho: Tensor
    shift: float | Tensor


class Curvature(Protocol):
    """The curvature of the model, G.

    Attributes:
        shift: What is added to its diagonal, a number or a vector of shape (P,): weight decay.

    A solver of one's own asks it for products, and where there are few rows for its factor:

    >>> def rows_or_none(curvature: Curvature, most: int = 1000) -> Factor | None:
    ...     def choose(rows: int, samples: int) -> float:
    ...         if rows > most:
    ...             raise NoSolutionError(f"{rows} rows are too many")
    ...         return 1.0
    ...
    ...     try:
    ...         found = curvature.factor(choose)
    ...     except NoSolutionError:
    ...         return None
    ...     return found if isinstance(found, Factor) else None
    """

    @property
    def shift(self) -> float | Tensor:
        """See above."""

    def __call__(self, v: Tensor) -> Tensor:
        """Return Gv, for v of shape (P,)."""

    def factor(self, choose: Callable[[int, int], float]) -> Factor | str:
        """Return G as a product of matrices, or say why there is none.

        Args:
            choose: Says, before any row is computed, which share of M rows, of so many samples, is wanted: 1 for all,
                less for a random sample, the same in every step, of which the product is G in the mean. It raises
                `NoSolutionError` where it wants none.
        """

    def change(self, p: Tensor) -> Tensor:
        """Return √H (z(θ + p) − z(θ)), shape (M,): what a step does to the outputs, in the rows of the last factor."""

    def pulled_change(self, p: Tensor) -> Tensor | None:
        """Return Jᵀ H (z(θ + p) − z(θ)) + diag(shift) p, shape (P,): Gp but for the outputs' curve.

        None where it cannot be had.
        """


class Memory(NamedTuple):
    """What a solver keeps from step to step; the optimizer's state holds it.

    Attributes:
        metric: Of an approximation of the inverse Hessian a row for each parameter, shape (P, k), k ≥ 0.
        numbers: All else, shape (n,).

    >>> import torch
    >>> Memory(metric=torch.eye(2), numbers=torch.tensor([0.5, 3.0])).numbers
    tensor([0.5000, 3.0000])
    """

    metric: Tensor
    numbers: Tensor


@dataclass(frozen=True)
class DampedProblem:
    """Minimise φ(p) = ½ pᵀ(G + λI)p − bᵀp, where b is the negative gradient. Vectors have shape (P,).

    Attributes:
        curvature: G.
        b: The right-hand side −g.
        damping: λ ≥ 0, a number or a vector of shape (P,).
        last_solution: What minimised the last step's model; None where nothing is remembered. The solver may
            overwrite it.
        memory: What the solver's last path asked to be remembered; not to be overwritten.
        preconditioner: `v -> Mv`, an approximation of (G + λI)⁻¹; None for none.
        loss_model: L(θ) on the model batch; NaN where the gradient is the caller's own.
        gradient_at: `p -> (loss, gradient)` on the model batch at θ + p; None where it is the caller's own.
        loss_0: L(θ) on the evaluation batch.
        loss_at: `p -> L(θ + p)` there, for solvers that judge trial steps themselves.
        wanted: From the largest number of iterations to the numbers of those whose iterates may be asked for.
        asynchronous: Whether to read a number waits for a device's queue.

    >>> import torch
    >>> DampedProblem(curvature=lambda v: 3.0 * v, b=torch.ones(2), damping=1.0).product(torch.tensor([1.0, 2.0]))
    tensor([4., 8.])
    """

    curvature: Curvature
    b: Tensor
    damping: float | Tensor
    last_solution: Tensor | None = None
    memory: Memory | None = None
    preconditioner: Operator | None = None
    loss_0: float = math.nan
    loss_at: Callable[[Tensor], float] = field(default=lambda p: math.nan)
    loss_model: float = math.nan
    gradient_at: Callable[[Tensor], tuple[float, Tensor] | None] = field(default=lambda p: None)
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
        damping_factor: What the solver itself multiplies λ by, if it measured that; None leaves it to the rule.
        curvature: The largest curvature dᵀGd / dᵀd that the solver met; infinite if it does not say.
        slope: How steeply the loss falls at first on the way to the last step; None where that way is straight.
        losses: Losses on B̄ after steps that the solver has tried already, by their numbers.
        method: How the steps were found, and why so, for people.
        matrices: What products of dense matrices and their factorisation took, about, in gradients.
        memory: What the solver wants to be given at the next step, if this one is taken.

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
    damping_factor: float | None = None
    curvature: float = math.inf
    slope: float | None = None
    losses: Mapping[int, float] = field(default_factory=dict)
    method: str = ""
    matrices: float = 0.0
    memory: Memory | None = None

    @property
    def last(self) -> int:
        """The number of the last step."""
        return max(self.steps)

    @property
    def statistics(self) -> dict[str, Any]:
        """What a step's record says of it."""
        return {
            "cg_iterations": self.iterations,
            "cg_stop": self.stop,
            "warm_started": self.warm_started,
            "solver": self.method,
            "matrices": self.matrices,
        }


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
