"""Preconditioned conjugate gradients with Martens' stop rule (Martens & Sutskever 2012, Algorithm 2)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from latephase.parts.solver import Operator
from latephase.records import CGStop


class NonPositiveCurvature(str, Enum):
    """What to do when a search direction d has dᵀAd ≤ 0, so that φ has no minimum along it."""

    STOP = "stop"  #: return the iterates so far
    SADDLE_FREE = "saddle-free"  #: use |dᵀAd| (Dauphin et al. 2014)
    IGNORE = "ignore"  #: use dᵀAd as it is


class Iterates(Mapping[int, Tensor]):
    """Iteration number → iterate of shape (P,), in increasing order.

    Only the latest are in memory, so that a long path takes no more of it than a short one. An earlier one is found
    by walking the path again, to the same bits; the walk leaves in memory those just before it.

    Args:
        numbers: All there are, in increasing order.
        in_memory: The latest of them, with the last.
        walk_to: Runs conjugate gradients again, up to the given iteration.
    """

    def __init__(self, numbers: list[int], in_memory: dict[int, Tensor], walk_to: Callable[[int], CGPath]) -> None:
        self._numbers = numbers
        self._in_memory = in_memory
        self._walk_to = walk_to

    def __getitem__(self, n: int) -> Tensor:
        if n not in self._in_memory and n in self._numbers:
            following = min(m for m in self._in_memory if m > n)  # it may be better than the one asked for
            stay = {m: self._in_memory[m] for m in (following, self._numbers[-1])}
            self._in_memory = {**self._walk_to(n).iterates._in_memory, **stay}
        return self._in_memory[n]

    def without(self, n: int) -> Iterates:
        """The same but for one number."""
        return Iterates([m for m in self._numbers if m != n], self._in_memory, self._walk_to)

    def __iter__(self) -> Iterator[int]:
        return iter(self._numbers)

    def __len__(self) -> int:
        return len(self._numbers)


class CGPath(NamedTuple):
    """The iterates {p_n} that conjugate gradients passed through.

    Attributes:
        iterates: Those that were to be kept, and the last.
        values: φ(x_i) for i = 0, 1, …: the quadratic model's change from zero. All finite.
        stop: Why the iteration ended.
        curvature: The largest dᵀAd / dᵀd of its directions.
    """

    iterates: Iterates
    values: list[float]
    stop: CGStop
    curvature: float

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
    in_memory: int = 4,
    check_every: int = 1,
) -> CGPath:
    """Minimise φ(x) = ½ xᵀAx − bᵀx for a symmetric positive definite A that is given by its products.

    Args:
        A: `v -> Av` for vectors of shape (P,).
        b: Right-hand side, shape (P,).
        x0: Starting point, shape (P,). It is used only where φ(x0) < 0 = φ(0), otherwise the start is zero.
        M: `v -> Mv`, an approximation of A⁻¹. Default: no preconditioning.
        max_iter: Most iterations (250: Martens & Sutskever 2012, Section 8.7). None means P.
        martens_conv_crit: Whether to stop by `relative_progress_stalled`.
        nonpos_curv_option: What to do at non-positive curvature.
        keep: Numbers of the iterations whose iterates are returned, besides the last.
        in_memory: How many of these are held; see `Iterates`. On a grid with γ = 1.3, an iterate that is
            four before the last costs a third of the path again.
        check_every: Iterations between two looks at the numbers. A look waits for the device; the result
            is the same whatever the interval, at the price of up to `check_every - 1` products too many.

    Returns:
        The path up to the iteration at which it ended. A non-finite number ends it before it is used.
    """
    x, r, phi = _start(A, b, x0)
    again = partial(
        cg, A, b, x, M, martens_conv_crit=False, nonpos_curv_option=nonpos_curv_option, keep=keep, in_memory=in_memory
    )
    path = _Path(b, keep, in_memory, lambda n: again(max_iter=n), martens_conv_crit, nonpos_curv_option)
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
        path.append(x, dAd, dd=d.dot(d), phi=_model_value(x, r, b), residual=r.norm())
        if i % check_every == 0:
            stop = path.look()
            if stop is not None:
                return path.ended(stop)
        del Ad  # not to be in memory beside the next
        d.mul_(ry / ry_old).sub_(y)
    return path.ended(path.look() or CGStop.MAX_ITERATIONS)


def relative_progress_stalled(values: list[float], epsilon: float = 5e-4) -> bool:
    """Return whether Martens' rule (2010, Section 4.4) stops after iteration i = `len(values) - 1`.

    It does when i > k, φ(x_i) < 0 and (φ(x_i) − φ(x_{i−k})) / φ(x_i) < kε with k = max(10, 0.1 i): over the last
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
        phi = float(_model_value(x0, r, b))
        if -math.inf < phi < 0.0:
            return x0, r, phi
    return torch.zeros_like(b), -b, 0.0


def _model_value(x: Tensor, r: Tensor, b: Tensor) -> Tensor:
    """φ(x) = ½ xᵀ(r − b) from the residual r = Ax − b."""
    return 0.5 * (x.dot(r) - x.dot(b))


class _Path:
    """Collects iterates, and decides from their numbers where the path ends."""

    def __init__(
        self,
        b: Tensor,
        keep: frozenset[int],
        in_memory: int,
        walk_to: Callable[[int], CGPath],
        martens_conv_crit: bool,
        nonpos_curv_option: NonPositiveCurvature,
    ) -> None:
        self._keep = keep
        self._most_in_memory = in_memory
        self._walk_to = walk_to
        self._martens_conv_crit = martens_conv_crit
        self._stop_at_non_positive = nonpos_curv_option is NonPositiveCurvature.STOP
        # Rounding bounds what the recurrence can reach: below this the residual is noise.
        self._eps = torch.finfo(b.dtype).eps
        self._smallest_residual = self._eps * float(b.norm())
        self._largest_curvature = 0.0
        self._unseen: list[tuple[Tensor, Tensor]] = []

    def begin(self, x: Tensor, phi: float, residual: float) -> CGStop | None:
        self._values: list[float] = []
        self._kept: dict[int, Tensor] = {}
        self._advance(x, phi)
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
            self._advance(x, phi)
            if residual <= self._smallest_residual:
                return CGStop.SOLVED
            if self._martens_conv_crit and relative_progress_stalled(self._values):
                return CGStop.RELATIVE_PROGRESS
        self._unseen.clear()
        return None

    def _advance(self, x: Tensor, phi: float) -> None:
        self._x = x
        self._values.append(phi)
        if len(self._values) - 1 in self._keep:
            self._kept[len(self._values) - 1] = x
            if len(self._kept) > self._most_in_memory:
                del self._kept[min(self._kept)]

    def ended(self, stop: CGStop) -> CGPath:
        last = len(self._values) - 1
        numbers = sorted({*(n for n in self._keep if n <= last), last})
        return CGPath(
            Iterates(numbers, {**self._kept, last: self._x}, self._walk_to), self._values, stop, self._largest_curvature
        )
