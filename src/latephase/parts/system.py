"""The damped normal equations (RᵀR + diag(shift) + λI)x = y, factorised in the smaller of two spaces, in float64."""

from __future__ import annotations

import torch
from torch import Tensor

from latephase.outer_rows import OuterRows, Rows, lower_gram, whole
from latephase.parts.solver import Factor


class System:
    """The equations of one step, for any λ.

    In row space x = Rᵀ(RRᵀ + μI)⁻¹ρ for y = Rᵀρ, with μ = λ + shift: no division by a small μ, so that tiny dampings
    cost no precision. It needs one number μ; where shift or λ is a vector the factorisation is in parameter space.

    Args:
        factor: R, ρ and shift.
        g: The gradient, shape (P,).
        in_rows: Whether to work in row space.

    Attributes:
        share: Of the multiplications that the matrix takes where rows are whole.
    """

    def __init__(self, factor: Factor, g: Tensor, *, in_rows: bool) -> None:
        self.R: Rows = (factor.R if in_rows else whole(factor.R)).double()
        self.rho, self.shift, self.in_rows, self._g = factor.rho.double(), factor.shift, in_rows, g
        self.K = lower_gram(self.R if in_rows else whole(self.R).T)
        self.share = self.R.share if isinstance(self.R, OuterRows) else 1.0
        rest = g.double() - self.R.T @ self.rho
        negligible = float(rest.norm()) <= torch.finfo(g.dtype).eps ** 0.75 * float(g.norm())
        self.rest = None if negligible else rest

    @property
    def finite(self) -> bool:
        """Whether all entries are finite."""
        return bool(self.K.isfinite().all())

    def damped(self, damping: float | Tensor) -> Damped | None:
        """Factorise for one λ; None where the matrix is not positive definite to rounding."""
        mu = self.shift + damping
        A = self.K.clone()
        A.diagonal().add_(mu)
        L, failed = torch.linalg.cholesky_ex(A)
        return None if bool(failed) else Damped(self, L, mu)

    def spectrum(self) -> Tensor:
        """The eigenvalues of G without its shift, but for zeros: shape (M,) or (P,)."""
        return torch.linalg.eigvalsh(self.K)  # by its lower triangle, which is all that is right

    def gradient(self) -> Tensor:
        """The gradient in float64."""
        return self._g.double()

    def like_gradient(self, x: Tensor) -> Tensor:
        """A vector in the gradient's type."""
        return x.type_as(self._g)


def mean_of(value: float | Tensor) -> float:
    """Return a number as it is, and the mean of several."""
    return value if isinstance(value, float) else float(value.mean())


class Damped:
    """The equations factorised for one λ."""

    def __init__(self, system: System, L: Tensor, mu: float | Tensor) -> None:
        self._system, self._L, self._mu = system, L, mu

    def step(self) -> Tensor:
        """The minimum of the damped model, −(RᵀR + μ)⁻¹g, shape (P,)."""
        system = self._system
        if not system.in_rows:
            return system.like_gradient(-self._solve(system.gradient()))
        x = system.R.T @ self._solve(system.rho)
        if system.rest is not None:
            x += (system.rest - system.R.T @ self._solve(system.R @ system.rest)) / self._mu
        return system.like_gradient(-x)

    def of_rows(self, beta: Tensor) -> Tensor:
        """(RᵀR + μ)⁻¹Rᵀβ for β of shape (M,)."""
        system, beta = self._system, beta.double()
        x = system.R.T @ self._solve(beta) if system.in_rows else self._solve(system.R.T @ beta)
        return system.like_gradient(x)

    def inverse(self, v: Tensor) -> Tensor:
        """(RᵀR + μ)⁻¹v for v of shape (P,)."""
        system, y = self._system, v.double()
        if system.in_rows:
            return system.like_gradient((y - system.R.T @ self._solve(system.R @ y)) / self._mu)
        return system.like_gradient(self._solve(y))

    def _solve(self, y: Tensor) -> Tensor:
        half = torch.linalg.solve_triangular(self._L, y.unsqueeze(1), upper=False)  # cholesky_solve would copy L
        return torch.linalg.solve_triangular(self._L.mT, half, upper=True).squeeze(1)
