"""Curvature as the metric of L-BFGS: one Krylov space, and then gradients only for as long as they bring more."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import ClassVar, NamedTuple

from torch import Tensor

from latephase.checks import positive_fraction, positive_integer
from latephase.parts.krylov import Krylov
from latephase.parts.solver import DampedProblem, Path
from latephase.parts.wolfe import Place, place, weak_wolfe


class Pair(NamedTuple):
    """A move s, what it changed the gradient by, y, and 1 / sᵀy."""

    s: Tensor
    y: Tensor
    rho: float


@dataclass(frozen=True)
class QuasiNewton:
    """Take a Krylov step, and go on from there by L-BFGS whose first metric is (G + λI)⁻¹ of that space.

    A product costs a gradient or two and tells of one direction; a gradient of L-BFGS costs one, and moves. The metric
    makes its first iterations as good as its later ones. Then a new space is worth its price.

    Attributes:
        krylov: What makes the space, and finds λ.
        most: Most gradients per step, all of whose differences L-BFGS remembers.
        floor: The metric's λ is no less than this share of the largest curvature in the space, in (0, 1]: beyond the
            space λ is all that it knows.

    >>> import torch
    >>> from latephase import HessianFree
    >>> theta, scales = torch.nn.Parameter(torch.zeros(2)), torch.tensor([1.0, 3.0])
    >>> opt = HessianFree([theta], curvature_opt="hessian", solver=QuasiNewton(Krylov(products=1)))
    >>> round(opt.step(lambda: (scales * (theta - 1.0).square()).sum()), 6)
    0.0
    >>> opt.last_step.solver
    'Krylov space of 1 vectors, then ... gradients of L-BFGS'
    """

    measures_damping: ClassVar[bool] = True
    krylov: Krylov = field(default_factory=lambda: Krylov(products=10, tolerance=1e-3, corrections=0))
    most: int = 60
    floor: float = 0.03

    def __post_init__(self) -> None:
        positive_integer("most", self.most)
        positive_fraction("floor", self.floor)

    def __call__(self, problem: DampedProblem) -> Path:
        """See `Solver`."""
        path, space = self.krylov.explore(problem)
        if space is None or not len(path.steps):
            return path
        start = place(problem, path.steps[path.last])
        lam = max((path.damping_factor or 1.0) * space.damping, self.floor * space.largest)
        walk = Walk(problem, start, lambda v: space.inverse(lam, v))
        while walk.gradients < self.most and walk.advance(lambda p: place(problem, p)):
            pass
        p = walk.here.p
        loss = problem.loss_at(p)
        if not loss < path.losses[path.last]:
            return path
        method = f"{path.method}, then {walk.gradients} gradients of L-BFGS"
        return replace(path, steps={path.last: p}, losses={path.last: loss}, method=method)


class Walk:
    """L-BFGS from a point, with a first metric that is given (Nocedal & Wright 2006, Algorithm 7.4)."""

    def __init__(self, problem: DampedProblem, start: Place, metric: Callable[[Tensor], Tensor]) -> None:
        self.here = start
        self.gradients = 1
        self._metric = metric
        self._pairs: list[Pair] = []
        origin = Place(start.p.new_zeros(start.p.shape), problem.loss_model, -problem.b)
        self._remember(origin, start)

    def advance(self, at: Callable[[Tensor], Place]) -> bool:
        """Move once; False where no step along the direction lowers the loss."""
        found = weak_wolfe(self.here, self._direction(), at)
        self.gradients += found.gradients
        if found.place is None:
            return False
        self._remember(self.here, found.place)
        self.here = found.place
        return True

    def _direction(self) -> Tensor:
        """−Hg by two loops over the pairs."""
        q = self.here.g.clone()
        weights = []
        for s, y, rho in reversed(self._pairs):
            weights.append(rho * float(s.dot(q)))
            q.sub_(y, alpha=weights[-1])
        r = self._metric(q)
        for (s, y, rho), weight in zip(self._pairs, reversed(weights), strict=True):
            r = r + (weight - rho * float(y.dot(r))) * s
        return -r

    def _remember(self, before: Place, after: Place) -> None:
        s, y = after.p - before.p, after.g - before.g
        sy = float(s.dot(y))
        if sy > 1e-10 * float(s.norm()) * float(y.norm()):
            self._pairs.append(Pair(s, y, 1.0 / sy))
