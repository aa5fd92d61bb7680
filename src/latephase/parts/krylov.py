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
    products: int = 200
    tolerance: float = 0.01
    corrections: int = 3
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
        lam, scale = _one_damping(problem.damping)
        space = lanczos(
            problem.curvature,
            problem.b,
            scale=scale,
            most=self.products,
            enough=lambda T, beta: _residual(T, lam, beta) <= self.tolerance,
        )
        if space is None:
            return Path({}, 0.0, stop=CGStop.NON_FINITE), None
        trial = _Trials(problem, space, lam, self.corrections)
        best = search(trial, problem.loss_0, spacing=self.spacing, most=self.trials)
        stop = CGStop.MAX_ITERATIONS if len(space.V) == self.products else CGStop.RELATIVE_PROGRESS
        space.damping = lam
        return best.path(problem.loss_0, len(space.V), stop, f"Krylov space of {len(space.V)} vectors"), space


class _Trials:
    """Steps for several λ from one space, with the losses after them."""

    def __init__(self, problem: DampedProblem, space: Space, lam: float, corrections: int) -> None:
        self._problem, self._space, self._lam, self._corrections = problem, space, lam, corrections
        self._losses: list[tuple[Tensor, float]] = []

    def __call__(self, factor: float) -> Trial:
        """The step for `factor` · λ, and the loss after it."""
        lam = factor * self._lam
        self._losses.clear()
        if not self._space.positive(lam):
            return Trial(factor, self._problem.b, math.inf, 0.0)
        v = self._space.step(lam)
        step = corrected(v, self._deviation, lambda e: self._space.answer(lam, e), most=self._corrections)
        return Trial(factor, step, self._loss(step), predicted=-0.5 * float(self._problem.b.dot(v)))

    def _deviation(self, p: Tensor) -> Deviation:
        """JᵀH (z(θ + p) − z(θ) − Jp), or 0 where it cannot be had; the merit is the loss."""
        change = self._problem.curvature.pulled_change(p)
        e = torch.zeros_like(p) if change is None else change - self._problem.curvature(p)
        return Deviation(e, lambda: self._loss(p))

    def _loss(self, p: Tensor) -> float:
        for known, loss in self._losses:
            if known is p:
                return loss
        self._losses.append((p, self._problem.loss_at(p)))
        return self._losses[-1][1]


class Space:
    """A Krylov space: an orthonormal basis V of shape (k, P), and T = VGVᵀ by its eigenvalues and -vectors.

    Where parameters have different λ it is that of the problem in scaled parameters, whose λ are all alike.

    Attributes:
        eigenvalues: Of T, from the smallest.
    """

    damping = 0.0  # the λ that it was made for

    def __init__(self, V: Tensor, T: Tensor, norm: float, scale: Tensor | None = None) -> None:
        self.V, self._scale = V, scale
        self.eigenvalues, self._Q = torch.linalg.eigh(T)
        self.start = T.new_zeros(len(V))
        self.start[0] = norm

    @property
    def largest(self) -> float:
        """The largest eigenvalue of T."""
        return float(self.eigenvalues[-1])

    def positive(self, lam: float) -> bool:
        """Whether T + λI is positive definite."""
        return float(self.eigenvalues[0]) + lam > 0.0

    def step(self, lam: float) -> Tensor:
        """The minimum of the damped model in the space, shape (P,)."""
        return scaled(self._scale, self.solve(lam, self.start))

    def answer(self, lam: float, e: Tensor) -> Tensor:
        """Return (G + λ)⁻¹e as far as the space reaches, shape (P,)."""
        return scaled(self._scale, self.solve(lam, self.V @ scaled(self._scale, e)))

    def metric(self, lam: float) -> tuple[Tensor, Tensor, float]:
        """Return (G + λ)⁻¹ as UMUᵀ + cI: U of shape (P, k), M, and c.

        It is exact in the space, and as if the curvature were its least there beyond it. Where parameters have
        different λ the space is of others, and U empty.
        """
        beyond = 1.0 / (lam + max(float(self.eigenvalues[0]), 0.0))
        if self._scale is not None:
            return self.V.new_empty(self.V.shape[1], 0), self.V.new_empty(0, 0), beyond
        values = 1.0 / (self.eigenvalues + lam) - beyond
        return self.V.T, ((self._Q * values) @ self._Q.T).type_as(self.V), beyond

    def solve(self, lam: float, y: Tensor) -> Tensor:
        """Return Vᵀ(T + λI)⁻¹y for y of shape (k,): a vector of shape (P,)."""
        x = self._Q @ ((self._Q.T @ y.double()) / (self.eigenvalues + lam))
        return self.V.T @ x.type_as(self.V)


def scaled(scale: Tensor | None, v: Tensor) -> Tensor:
    """Return v in scaled parameters, or back; the scale None is 1."""
    return v if scale is None else scale * v


def lanczos(
    A: Operator, b: Tensor, *, most: int, enough: Callable[[Tensor, float], bool], scale: Tensor | None = None
) -> Space | None:
    """Return the Krylov space of A and b, or None if a number is not finite.

    Args:
        A: `v -> Av` for symmetric A and vectors of shape (P,).
        b: Shape (P,), not zero.
        most: Most products.
        enough: Says, from T so far and the next off-diagonal entry, whether the space is large enough.
        scale: Of the parameters, shape (P,): the space is that of SAS and Sb, with S the diagonal matrix of it.
    """
    b = scaled(scale, b)
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
        w = scaled(scale, A(scaled(scale, basis[-1])))
        diagonal.append(float(basis[-1].dot(w)))
        for _ in range(2):  # twice is enough (Parlett 1980)
            w = w - basis.T @ (basis @ w)
        beta = float(w.norm())
        if not (math.isfinite(diagonal[-1]) and math.isfinite(beta)):
            return None
        T = _tridiagonal(diagonal, beside)
        if k == most or beta <= eps * max(map(abs, diagonal)) or enough(T, beta):
            return Space(basis, T.type_as(b.double()), norm, scale)
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
