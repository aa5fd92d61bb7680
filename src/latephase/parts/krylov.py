"""Steps from one Krylov space, which serves every λ: k products, and no more for all that is tried."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from latephase.checks import non_negative_integer, positive_fraction, positive_integer
from latephase.parts.corrections import Deviation, corrected
from latephase.parts.solver import DampedProblem, NoSolutionError, Operator, Path
from latephase.parts.trials import Trial, check_trials, search
from latephase.records import CGStop


@dataclass(frozen=True)
class Krylov:
    """Project the model on the Krylov space of the gradient (Lanczos), and search λ there by trial losses.

    With an orthonormal basis V of k vectors and the tridiagonal T = VᵀGV, the step for any λ is V(T + λI)⁻¹e₁‖g‖: what
    conjugate gradients would have after k iterations, for all λ at once. Steps follow the outputs' curve, as far as
    the space reaches, see `corrected`; a correction takes a product and the like of another. The basis takes k · P
    numbers of memory. Every new vector is made orthogonal to all, so that rounding adds nothing.

    Attributes:
        products: Most products, k.
        tolerance: The space is large enough once the residual of the system for the last λ is below this share of the
            gradient, in (0, 1].
        corrections: Most corrections of a step, ≥ 0.
        spacing: The factor between two λ that are tried, above 1.
        trials: Most λ per step.

    >>> import torch
    >>> from latephase import HessianFree
    >>> theta, scales = torch.nn.Parameter(torch.zeros(2)), torch.tensor([1.0, 3.0])
    >>> opt = HessianFree([theta], curvature_opt="hessian", solver=Krylov(tolerance=0.001))
    >>> round(opt.step(lambda: (scales * (theta - 1.0).square()).sum()), 6)
    0.0
    >>> opt.last_step.solver
    'Krylov space of 2 vectors'
    """

    measures_damping: ClassVar[bool] = True
    products: int = 60
    tolerance: float = 0.03
    corrections: int = 1
    spacing: float = 4.0
    trials: int = 12

    def __post_init__(self) -> None:
        positive_integer("products", self.products)
        positive_fraction("tolerance", self.tolerance)
        non_negative_integer("corrections", self.corrections)
        check_trials(self.spacing, self.trials)

    def __call__(self, problem: DampedProblem) -> Path:
        """See `Solver`."""
        return self.explore(problem)[0]

    def explore(self, problem: DampedProblem) -> tuple[Path, Space | None]:
        """The same, and the space; None where a number is not finite."""
        if problem.preconditioner is not None:
            raise NoSolutionError("a Krylov space for all dampings takes no preconditioner; use solver='cg'")
        # Where groups have different λ, the space is that of the scaled problem whose λ are all alike.
        lam, scale = _one_damping(problem.damping)
        space = lanczos(
            lambda v: problem.curvature(v if scale is None else scale * v) * (1.0 if scale is None else scale),
            problem.b if scale is None else scale * problem.b,
            most=self.products,
            enough=lambda T, next_beta: _residual(T, lam, next_beta) <= self.tolerance,
        )
        if space is None:
            return Path({}, 0.0, stop=CGStop.NON_FINITE), None
        best = search(
            lambda factor: self._trial(problem, space, factor, lam, scale),
            problem.loss_0,
            spacing=self.spacing,
            most=self.trials,
        )
        stop = CGStop.MAX_ITERATIONS if len(space.V) == self.products else CGStop.RELATIVE_PROGRESS
        space.damping, space.scale = lam, scale
        return best.path(problem.loss_0, len(space.V), stop, f"Krylov space of {len(space.V)} vectors"), space

    def _trial(self, problem: DampedProblem, space: Space, factor: float, lam: float, scale: Tensor | None) -> Trial:
        """The step for `factor` · λ, and the loss after it."""
        if not space.positive(factor * lam):
            return Trial(factor, problem.b, math.inf, 0.0)
        v = space.solve(factor * lam, space.start)
        v = v if scale is None else scale * v

        def answer(e: Tensor) -> Tensor:
            a = space.solve(factor * lam, space.V @ (e if scale is None else scale * e))
            return a if scale is None else scale * a

        step = corrected(v, lambda p: _deviation(problem, p), answer, most=self.corrections)
        return Trial(factor, step, problem.loss_at(step), predicted=-0.5 * float(problem.b.dot(v)))


def _deviation(problem: DampedProblem, p: Tensor) -> Deviation:
    """JᵀH (z(θ + p) − z(θ) − Jp), or 0 where it cannot be had; the merit is the loss."""
    change = problem.curvature.pulled_change(p)
    e = torch.zeros_like(p) if change is None else change - problem.curvature(p)
    return Deviation(e, lambda: problem.loss_at(p))


class Space:
    """A Krylov space: an orthonormal basis V of shape (k, P), and T = VGVᵀ by its eigenvalues and -vectors."""

    damping = 0.0
    scale: Tensor | None = None

    def __init__(self, V: Tensor, T: Tensor, norm: float) -> None:
        self.V = V
        self._eigenvalues, self._Q = torch.linalg.eigh(T)
        self.start = T.new_zeros(len(V))
        self.start[0] = norm

    @property
    def largest(self) -> float:
        """The largest eigenvalue of T."""
        return float(self._eigenvalues[-1])

    def positive(self, lam: float) -> bool:
        """Whether T + λI is positive definite."""
        return float(self._eigenvalues[0]) + lam > 0.0

    def inverse(self, lam: float, v: Tensor) -> Tensor:
        """Return (G + λ)⁻¹v: exact in the space, and as if the curvature were its least there beyond it."""
        v = v if self.scale is None else self.scale * v
        inside = self.V @ v
        beyond = v - self.V.T @ inside
        x = self.solve(lam, inside) + beyond / (lam + max(float(self._eigenvalues[0]), 0.0))
        return x if self.scale is None else self.scale * x

    def solve(self, lam: float, y: Tensor) -> Tensor:
        """Return Vᵀ(T + λI)⁻¹y for y of shape (k,): a vector of shape (P,)."""
        x = self._Q @ ((self._Q.T @ y.double()) / (self._eigenvalues + lam))
        return self.V.T @ x.type_as(self.V)


def lanczos(A: Operator, b: Tensor, *, most: int, enough: Callable[[Tensor, float], bool]) -> Space | None:
    """Return the Krylov space of A and b, or None if a number is not finite.

    Args:
        A: `v -> Av` for symmetric A and vectors of shape (P,).
        b: Shape (P,), not zero.
        most: Most products.
        enough: Says, from T so far and the next off-diagonal entry, whether the space is large enough.
    """
    norm = float(b.norm())
    most = min(most, b.numel())
    V = b.new_empty((most, b.numel()))
    V[0] = b / norm
    diagonal: list[float] = []
    beside: list[float] = []
    eps = torch.finfo(b.dtype).eps
    while True:
        k = len(diagonal) + 1
        basis = V[:k]
        w = A(basis[-1])
        diagonal.append(float(basis[-1].dot(w)))
        for _ in range(2):  # twice is enough (Parlett 1980)
            w = w - basis.T @ (basis @ w)
        beta = float(w.norm())
        if not (math.isfinite(diagonal[-1]) and math.isfinite(beta)):
            return None
        T = _tridiagonal(diagonal, beside)
        if k == most or beta <= eps * max(map(abs, diagonal)) or enough(T, beta):
            return Space(basis, T.type_as(b.double()), norm)
        beside.append(beta)
        V[k] = w / beta


def _tridiagonal(diagonal: list[float], beside: list[float]) -> Tensor:
    off = torch.diag(torch.tensor(beside, dtype=torch.float64, device="cpu"), 1)
    return torch.diag(torch.tensor(diagonal, dtype=torch.float64, device="cpu")) + off + off.T


def _residual(T: Tensor, lam: float, beta: float) -> float:
    """‖(A + λ)x − b‖ / ‖b‖ of the Galerkin solution in the space."""
    e1 = torch.zeros(len(T), dtype=T.dtype, device="cpu")
    e1[0] = 1.0
    damped = T + lam * torch.eye(len(T), dtype=T.dtype, device="cpu")
    return beta * abs(float(torch.linalg.solve(damped, e1)[-1]))


def _one_damping(damping: float | Tensor) -> tuple[float, Tensor | None]:
    """One λ, and the scale of the parameters that makes all λ alike; None for 1."""
    if not isinstance(damping, Tensor):
        return damping, None
    lam = float(damping.log().mean().exp())
    return lam, (lam / damping).sqrt()
