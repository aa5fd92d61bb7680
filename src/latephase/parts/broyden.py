"""The updates of Broyden's family of an approximation of the inverse Hessian, self-scaled; dense, or of low rank.

The choice of scale and member is Al-Baali's as Urbán, Stefanou and Pons 2024 (arXiv 2405.04230) give it, the second of
their two.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

NUMBERS = 2**29  # of an approximation that are kept at most: 2 GiB in float32


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


class Inverse:
    """An approximation H = cI + UMUᵀ of the inverse Hessian, which each update changes in two directions.

    It may be of any number of parameters: what is kept for long is what differs most from a multiple of the identity.

    Args:
        parameters: A vector of as many numbers as there are parameters, [P], for their type.
        updates: Most that are added.
        columns: U at first, [P, k]; by default none.
        numbers: c, and then M's, [1 + k²]; by default H is I.

    >>> import torch
    >>> inverse = Inverse(torch.zeros(2), updates=1)
    >>> s, y = torch.tensor([1.0, 0.0]), torch.tensor([2.0, 1.0])
    >>> inverse.add(change(s, y, inverse.times(y), sBs=1.0))
    >>> inverse.times(y)
    tensor([1., 0.])
    """

    def __init__(
        self, parameters: Tensor, updates: int, columns: Tensor | None = None, numbers: Tensor | None = None
    ) -> None:
        k = 0 if columns is None else columns.shape[1]
        room = k + 2 * updates
        self._used, self._scale = k, 1.0
        self._columns, self._weights = parameters.new_empty(len(parameters), room), parameters.new_zeros(room, room)
        if columns is not None and numbers is not None:
            self._columns[:, :k], self._weights[:k, :k] = columns, numbers[1:].view(k, k)
            self._scale = float(numbers[0])

    def times(self, x: Tensor) -> Tensor:
        """Return Hx."""
        U, M = self._low_rank()
        return self._scale * x + U @ (M @ (U.T @ x))

    def add(self, change: Change) -> None:
        """Update it."""
        here = slice(self._used, self._used + 2)
        self._scale /= change.tau
        self._weights /= change.tau
        self._columns[:, here], self._weights[here, here] = change.W, change.K
        self._used += 2

    def kept(self, most: int) -> tuple[Tensor, Tensor]:
        """Return U, and c and M's numbers; if that is more than `most` columns, anew, and half as many.

        Those are orthonormal then, and the directions in which H differs most from cI, in ratio. Nor are there more
        than `NUMBERS` allows.
        """
        U, M = self._low_rank()
        most = min(most, max(NUMBERS // len(U), 2))
        if self._used > most:
            Q, R = torch.linalg.qr(U)
            values, W = torch.linalg.eigh((R @ M @ R.T).double())
            ratios = 1.0 + values / self._scale
            ratios[ratios <= torch.finfo(U.dtype).eps] = 1.0  # rounding: H is positive definite
            which = ratios.log().abs().topk(min(max(most // 2, 1), len(values))).indices
            U, M = Q @ W[:, which].type_as(U), values[which].type_as(U).diag()
        return U, torch.cat([M.new_tensor([self._scale]), M.flatten()])

    def _low_rank(self) -> tuple[Tensor, Tensor]:
        return self._columns[:, : self._used], self._weights[: self._used, : self._used]
