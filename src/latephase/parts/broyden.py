"""The updates of Broyden's family of an approximation of the inverse Hessian, self-scaled; dense, or of low rank.

The choice of scale and member is Al-Baali's as Urbán, Stefanou and Pons 2024 (arXiv 2405.04230) give it, the second of
their two.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

HELD = 16  # updates that are added to a matrix at a time


class Choice(NamedTuple):
    """Which member of Broyden's family the update is, and how H is scaled.

    Attributes:
        phi: 1 for BFGS, 0 for DFP.
        tau: What H is divided by before the step's own curvature is added.
    """

    phi: float
    tau: float


def self_scaled(h: float, b: float, n: int) -> Choice:
    """Return the choice of Urbán et al. 2024, equations 13 to 23.

    Args:
        h: yᵀHy / sᵀy.
        b: sᵀBs / sᵀy, where B is the inverse of H. By Cauchy and Schwarz hb ≥ 1.
        n: The number of parameters.
    """
    a = max(h * b - 1, torch.finfo(torch.float64).eps)
    rho = min(1.0, h * (1 - math.sqrt(a / (1 + a))))
    theta = max((rho - 1) / a, min(1 / rho, (1 - b) / b))  # of the update of B; 0 is BFGS, 1 DFP
    sigma = 1 + theta * a
    root = sigma ** (-1 / max(n - 1, 1))
    scale = min(1.0, 1 / b)
    tau = min(scale * root, sigma) if theta <= 0 else scale * min(root, 1 / theta)
    return Choice((1 - theta) / sigma, tau)


def update(H: Tensor, s: Tensor, y: Tensor, sBs: float, choose: Callable[..., Choice] = self_scaled) -> None:
    """Update the approximation H of the inverse Hessian in place, such that afterwards Hy = s.

    Args:
        H: [P, P].
        s: The step, [P].
        y: By how much the gradient changed along it, [P], with sᵀy > 0.
        sBs: sᵀBs, where B is the inverse of H.
        choose: Given h, b and P as `self_scaled` is, returns φ and τ.
    """
    tau, W, K = change(s, y, H @ y, sBs, choose)
    H.addmm_(W @ K, W.T, beta=1 / tau)


class Change(NamedTuple):
    """An update H ← H / τ + W K Wᵀ, where W has two columns."""

    tau: float
    W: Tensor
    K: Tensor

    def of(self, Hx: Tensor, x: Tensor) -> Tensor:
        """Return what Hx is after it, for the x that it was the product with."""
        return Hx / self.tau + self.W @ (self.K @ (self.W.T @ x))


def change(s: Tensor, y: Tensor, Hy: Tensor, sBs: float, choose: Callable[..., Choice] = self_scaled) -> Change:
    """The update by s and y: H ← (H − Hy yᵀH / yᵀHy + φ · yᵀHy · v vᵀ) / τ + s sᵀ / sᵀy, v = s / sᵀy − Hy / yᵀHy."""
    rho, yHy = 1 / float(s @ y), float(y @ Hy)
    phi, tau = choose(yHy * rho, sBs * rho, len(s))
    mixed = -phi * rho / tau
    K = s.new_tensor([[phi * yHy * rho * rho / tau + rho, mixed], [mixed, (phi - 1) / (yHy * tau)]])
    return Change(tau, torch.stack((s, Hy), dim=1), K)


class Inverse(ABC):
    """An approximation H = cH₀ + UMUᵀ of the inverse Hessian, whose updates change it in two directions each.

    Args:
        columns: U, [P, K]: those there are at first, and room for more.
        weights: M, [K, K], likewise.
        used: How many there are at first.
        scale: c.
    """

    def __init__(self, columns: Tensor, weights: Tensor, used: int, scale: float) -> None:
        self._columns, self._weights, self._used, self._scale = columns, weights, used, scale

    @abstractmethod
    def _first(self, x: Tensor) -> Tensor:
        """Return cH₀x."""

    def times(self, x: Tensor) -> Tensor:
        """Return Hx."""
        U, M = self._low_rank()
        return self._first(x) + U @ (M @ (U.T @ x))

    def add(self, change: Change) -> None:
        """Update it."""
        here = slice(self._used, self._used + 2)
        self._scale /= change.tau
        self._weights /= change.tau
        self._columns[:, here], self._weights[here, here] = change.W, change.K
        self._used += 2

    def _low_rank(self) -> tuple[Tensor, Tensor]:
        return self._columns[:, : self._used], self._weights[: self._used, : self._used]


class Dense(Inverse):
    """All P² numbers of it. Updates are kept apart, and added a few at a time.

    To read or write P² numbers is most of what a dense quasi-Newton method does beside its gradients. Here H₀ is read
    once per iteration and written once in `HELD` of them.

    Args:
        H: At first, [P, P]; it is copied.

    >>> import torch
    >>> inverse = Dense(torch.eye(2))
    >>> s, y = torch.tensor([1.0, 0.0]), torch.tensor([2.0, 1.0])
    >>> inverse.add(change(s, y, inverse.times(y), sBs=1.0))
    >>> inverse.times(y)
    tensor([1., 0.])
    """

    def __init__(self, H: Tensor) -> None:
        super().__init__(H.new_zeros(len(H), 2 * HELD), H.new_zeros(2 * HELD, 2 * HELD), 0, 1.0)
        self._H = H.clone()

    def _first(self, x: Tensor) -> Tensor:
        return self._scale * (self._H @ x)

    def add(self, change: Change) -> None:
        """Update it."""
        if self._used == 2 * HELD:
            self._settle()
        super().add(change)

    def dense(self) -> Tensor:
        """Return H, [P, P], which the next update may overwrite."""
        self._settle()
        return self._H

    def _settle(self) -> None:
        U, M = self._low_rank()
        self._H.addmm_(U @ M, U.T, beta=self._scale)
        self._scale, self._used = 1.0, 0
        self._weights.zero_()


class LowRank(Inverse):
    """cI and what differs from it in few directions, for any number of parameters.

    Args:
        U: Columns at first, [P, k].
        M: Their weights, [k, k].
        scale: c.
        updates: Most that are added.

    >>> import torch
    >>> inverse = LowRank(torch.eye(3)[:, :1], torch.tensor([[-0.5]]), scale=2.0, updates=1)
    >>> inverse.times(torch.ones(3))
    tensor([1.5000, 2.0000, 2.0000])
    """

    def __init__(self, U: Tensor, M: Tensor, scale: float, updates: int) -> None:
        (P, k), room = U.shape, U.shape[1] + 2 * updates
        super().__init__(U.new_empty(P, room), U.new_zeros(room, room), k, scale)
        self._columns[:, :k], self._weights[:k, :k] = U, M

    def _first(self, x: Tensor) -> Tensor:
        return self._scale * x

    def kept(self, most: int) -> tuple[Tensor, Tensor, float]:
        """Return U, M and c; if that is more than `most` columns, anew, and half as many.

        Those are orthonormal then, and the directions in which H differs most from cI, in ratio.
        """
        U, M = self._low_rank()
        if self._used <= most:
            return U, M, self._scale
        Q, R = torch.linalg.qr(U)
        values, W = torch.linalg.eigh((R @ M @ R.T).double())
        ratios = 1.0 + values / self._scale
        ratios[ratios <= torch.finfo(U.dtype).eps] = 1.0  # rounding: H is positive definite
        which = ratios.log().abs().topk(min(max(most // 2, 1), len(values))).indices
        return Q @ W[:, which].type_as(U), values[which].type_as(U).diag(), self._scale
