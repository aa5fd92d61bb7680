"""Preconditioned conjugate gradients with Martens' stop rule (Martens & Sutskever 2012, Algorithm 2)."""

from __future__ import annotations

import math
from collections.abc import Callable
from enum import Enum
from typing import NamedTuple

import torch
from torch import Tensor

from latephase.records import CGStop

Operator = Callable[[Tensor], Tensor]


class NonPositiveCurvature(str, Enum):
    """What to do when a search direction d has dᵀAd ≤ 0, so that φ has no minimum along it."""

    STOP = "stop"  #: return the iterates so far
    SADDLE_FREE = "saddle-free"  #: use |dᵀAd| (Dauphin et al. 2014)
    IGNORE = "ignore"  #: use dᵀAd as it is


class CGPath(NamedTuple):
    """The iterates {p_n} that conjugate gradients passed through.

    Attributes:
        iterates: Iteration number → iterate of shape (P,), in increasing order; the last iterate is always there.
        values: φ(x_i) for i = 0, 1, …: the quadratic model's change from zero. All finite.
        stop: Why the iteration ended.
    """

    iterates: dict[int, Tensor]
    values: list[float]
    stop: CGStop

    @property
    def last(self) -> int:
        """The number of the last iterate, which is the number of iterations."""
        return len(self.values) - 1


def cg(
    A: Operator,
    b: Tensor,
    x0: Tensor | None = None,
    M: Operator | None = None,
    *,
    max_iter: int | None = 250,
    martens_conv_crit: bool = True,
    nonpos_curv_option: NonPositiveCurvature = NonPositiveCurvature.STOP,
    keep: frozenset[int] = frozenset(),
    check_every: int = 1,
) -> CGPath:
    """Minimise φ(x) = ½ xᵀAx − bᵀx for a symmetric positive definite A that is given by its products.

    Args:
        A: ``v -> Av`` for vectors of shape (P,).
        b: Right-hand side, shape (P,).
        x0: Starting point, shape (P,). It is used only where φ(x0) < 0 = φ(0), otherwise the start is zero.
        M: ``v -> Mv``, an approximation of A⁻¹. Default: no preconditioning.
        max_iter: Most iterations (250: Martens & Sutskever 2012, Section 8.7). None means P.
        martens_conv_crit: Whether to stop by :func:`relative_progress_stalled`.
        nonpos_curv_option: What to do at non-positive curvature.
        keep: Numbers of the iterations whose iterates are returned, besides the last.
        check_every: Iterations between two looks at the numbers. A look waits for the device; the result
            is the same whatever the interval, at the price of up to ``check_every - 1`` products too many.

    Returns:
        The path up to the iteration at which it ended. A non-finite number ends it before it is used.
    """
    path = _Path(b, keep, martens_conv_crit, nonpos_curv_option)
    x, r, phi = _start(A, b, x0)
    stop = path.begin(x, phi, float(r.norm()))
    if stop is not None:
        return path.ended(stop)

    y = r if M is None else M(r)
    ry = r.dot(y)
    d = -y
    for i in range(1, (b.numel() if max_iter is None else max_iter) + 1):
        Ad = A(d)
        dAd = d.dot(Ad)
        alpha = ry / (dAd.abs() if nonpos_curv_option is NonPositiveCurvature.SADDLE_FREE else dAd)
        x = torch.addcmul(x, d, alpha)
        r.addcmul_(Ad, alpha)
        y = r if M is None else M(r)
        ry, ry_old = r.dot(y), ry
        path.append(x, dAd, dd=d.dot(d), phi=0.5 * x.dot(r - b), residual=r.norm())
        if i % check_every == 0:
            stop = path.look()
            if stop is not None:
                return path.ended(stop)
        d.mul_(ry / ry_old).sub_(y)
    return path.ended(path.look() or CGStop.MAX_ITERATIONS)


def relative_progress_stalled(values: list[float], epsilon: float = 5e-4) -> bool:
    """Martens' stop rule (2010, Section 4.4) after iteration i = ``len(values) - 1``.

    True when i > k, φ(x_i) < 0 and (φ(x_i) − φ(x_{i−k})) / φ(x_i) < kε with k = max(10, 0.1 i): over the last
    k iterations each brought less than the share ε of what has been reached.
    """
    i = len(values) - 1
    k = max(10, i // 10)
    if i <= k or not values[i] < 0.0:
        return False
    # φ(x_i) is negative: multiplying by it turns the inequality around.
    return values[i] - values[i - k] > k * epsilon * values[i]


def _start(A: Operator, b: Tensor, x0: Tensor | None) -> tuple[Tensor, Tensor, float]:
    """Return the starting point, its residual Ax − b and its model value."""
    if x0 is not None:
        r = A(x0) - b
        phi = 0.5 * float(x0.dot(r - b))
        if -math.inf < phi < 0.0:
            return x0, r, phi
    return torch.zeros_like(b), -b, 0.0


class _Path:
    """Collects iterates, and decides from their numbers where the path ends."""

    def __init__(
        self,
        b: Tensor,
        keep: frozenset[int],
        martens_conv_crit: bool,
        nonpos_curv_option: NonPositiveCurvature,
    ) -> None:
        self._keep = keep
        self._martens_conv_crit = martens_conv_crit
        self._stop_at_non_positive = nonpos_curv_option is NonPositiveCurvature.STOP
        # Rounding bounds what the recurrence can reach: below this the residual is noise.
        self._eps = torch.finfo(b.dtype).eps
        self._smallest_residual = self._eps * float(b.norm())
        self._largest_curvature = 0.0
        self._unseen: list[tuple[Tensor, Tensor]] = []

    def begin(self, x: Tensor, phi: float, residual: float) -> CGStop | None:
        self._x = x
        self._values = [phi]
        self._kept = {0: x} if 0 in self._keep else {}
        return CGStop.SOLVED if residual <= self._smallest_residual else None

    def append(self, x: Tensor, dAd: Tensor, dd: Tensor, phi: Tensor, residual: Tensor) -> None:
        self._unseen.append((x, torch.stack((dAd, dd, phi, residual))))

    def look(self) -> CGStop | None:
        """Read the numbers of the iterations since the last look; one synchronisation."""
        if not self._unseen:
            return None
        rows = torch.stack([row for _, row in self._unseen]).tolist()
        for (x, _), (dAd, dd, phi, residual) in zip(self._unseen, rows, strict=True):
            # An indefinite direction or a non-finite number spoils this iterate: the path ends at the one before.
            # Curvature that is nothing but the rounding of larger curvature counts as none.
            if self._stop_at_non_positive and dAd <= self._eps * self._largest_curvature * dd:
                return CGStop.NON_POSITIVE_CURVATURE
            self._largest_curvature = max(self._largest_curvature, dAd / dd if dd > 0.0 else 0.0)
            if not (math.isfinite(dAd) and math.isfinite(phi) and math.isfinite(residual)):
                return CGStop.NON_FINITE
            self._x = x
            self._values.append(phi)
            if len(self._values) - 1 in self._keep:
                self._kept[len(self._values) - 1] = x
            if residual <= self._smallest_residual:
                return CGStop.SOLVED
            if self._martens_conv_crit and relative_progress_stalled(self._values):
                return CGStop.RELATIVE_PROGRESS
        self._unseen.clear()
        return None

    def ended(self, stop: CGStop) -> CGPath:
        return CGPath({**self._kept, len(self._values) - 1: self._x}, self._values, stop)
