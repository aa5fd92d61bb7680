"""Gradients for as long as they bring something, and then a Krylov space, which is the metric of the next ones."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch

from latephase.checks import positive_fraction, positive_integer
from latephase.parts.broyden import LowRank
from latephase.parts.krylov import Krylov
from latephase.parts.solver import DampedProblem, Memory, Path
from latephase.parts.walk import Walk
from latephase.parts.wolfe import Place, place

NUMBERS = 2**29  # that are kept at most, 2 GiB in float32


@dataclass(frozen=True)
class QuasiNewton:
    """Go on by gradients alone, self-scaled Broyden of limited memory; where that ends, from a Krylov step.

    A product costs a gradient or two and tells of one direction; a gradient costs one, and moves. What the moves tell
    of the inverse Hessian is kept, from step to step: its difference from a multiple of the identity, in `kept` vectors
    at most. Where they bring nothing any more, a Krylov step is taken, and (G + λI)⁻¹ of that space is what the next
    moves begin with.

    Where a step is judged on other data each begins with a space of its own, and nothing is kept.

    Attributes:
        krylov: What makes the space, and finds λ.
        most: Most gradients per step.
        kept: Most vectors that are kept, as far as memory reaches (2²⁹ numbers). Of more than that half stay, in which
            the inverse Hessian differs most from a multiple of the identity.
        floor: The metric's λ is no less than this share of the largest curvature in the space, in (0, 1]: beyond the
            space λ is all that it knows.

    >>> import torch
    >>> from latephase import HessianFree
    >>> theta, scales = torch.nn.Parameter(torch.zeros(2)), torch.tensor([1.0, 3.0])
    >>> opt = HessianFree([theta], curvature_opt="hessian", solver=QuasiNewton(Krylov(products=1)))
    >>> round(opt.step(lambda: (scales * (theta - 1.0).square()).sum()), 6)
    0.0
    >>> opt.last_step.solver
    '... gradients of self-scaled Broyden'
    """

    measures_damping: ClassVar[bool] = True
    krylov: Krylov = field(default_factory=lambda: Krylov(products=10, tolerance=1e-3, corrections=0))
    most: int = 30
    kept: int = 400
    floor: float = 0.03

    def __post_init__(self) -> None:
        positive_integer("most", self.most)
        positive_integer("kept", self.kept)
        positive_fraction("floor", self.floor)

    def __call__(self, problem: DampedProblem) -> Path:
        """See `Solver`."""
        return self._by_gradients(problem) or self._by_products(problem)

    def _by_gradients(self, problem: DampedProblem) -> Path | None:
        """Go on from θ with what is remembered, at first with the identity; None if that brings nothing."""
        if not self._keeps(problem):
            return None
        inverse, before = self._recalled(problem)
        walk = Walk(Place(torch.zeros_like(problem.b), problem.loss_0, -problem.b), inverse, before)
        self._advance(walk, problem)
        path = walk.path(problem)
        return replace(path, memory=self._kept(walk, inverse)) if path.losses[path.last] < problem.loss_0 else None

    def _recalled(self, problem: DampedProblem) -> tuple[LowRank, float | None]:
        b, memory = problem.b, problem.memory
        if memory is None or len(memory.numbers) != 2 + memory.metric.shape[1] ** 2:
            return LowRank(b.new_empty(len(b), 0), b.new_empty(0, 0), 1.0, self.most), None
        scale, before = memory.numbers[:2].tolist()
        U, M = memory.metric, memory.numbers[2:]
        return LowRank(U, M.view(U.shape[1], -1), scale, self.most), before

    def _by_products(self, problem: DampedProblem) -> Path:
        """A Krylov step, and on from there."""
        path, space = self.krylov.explore(problem)
        if space is None or not len(path.steps):
            return path
        lam = max((path.damping_factor or 1.0) * space.damping, self.floor * space.largest)
        inverse = LowRank(*space.metric(lam), self.most)
        walk = Walk(place(problem, path.steps[path.last]), inverse)
        walk.gradients = 1  # to know the place
        self._advance(walk, problem)
        p = walk.here.p
        loss = problem.loss_at(p)
        if not loss < path.losses[path.last]:
            return path
        method = f"{path.method}, then {walk.gradients} gradients of self-scaled Broyden"
        memory = self._kept(walk, inverse) if self._keeps(problem) else None
        return replace(path, steps={path.last: p}, losses={path.last: loss}, method=method, memory=memory)

    def _advance(self, walk: Walk, problem: DampedProblem) -> None:
        while walk.gradients < self.most and walk.advance(lambda p: place(problem, p)):
            pass

    def _kept(self, walk: Walk, inverse: LowRank) -> Memory:
        U, M, scale = inverse.kept(min(self.kept, max(NUMBERS // len(walk.here.p), 2)))
        before = walk.here.loss if walk.before is None else walk.before
        return Memory(U, torch.cat([M.new_tensor([scale, before]), M.flatten()]))

    @staticmethod
    def _keeps(problem: DampedProblem) -> bool:
        """Whether what one step learns is of use to the next: not where data change in between."""
        return problem.loss_model == problem.loss_0
