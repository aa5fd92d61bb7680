"""Curvature over a batch in parts, of which only some have their graphs in memory at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from latephase.curvature.factor import Roots
from latephase.curvature.ggn import GGN
from latephase.curvature.hessian import Hessian
from latephase.curvature.jacobian import NotBySampleError
from latephase.curvature.options import DEFAULT_OPTIONS, Options
from latephase.curvature.point import Point
from latephase.curvature.returned import Forward
from latephase.outer_rows import Rows, stacked


class Kind(NamedTuple):
    """A kind of curvature, and how its products are computed."""

    operator: type[GGN] | type[Hessian]
    options: Options = DEFAULT_OPTIONS

    def at(self, point: Point) -> GGN | Hessian:
        """Return the operator at a point."""
        return self.operator(point, self.options)

    def needs_graph_at(self, point: Point) -> bool:
        """Whether that can only be made while the point has its graph."""
        return self.operator.needs_graph_at(point, self.options)


class Term(NamedTuple):
    """One part of the batch: how to evaluate it at θ, and its weight in the sum."""

    forward: Forward
    weight: float
    evaluate: Callable[[], Point]


class Accumulated:
    """`v -> Σ weight · C v` over the parts of a batch.

    While one part is being worked on its graph is in memory too; where all fit, none is worked on twice.

    Args:
        terms: The parts.
        kind: The curvature of each.
        in_memory: How many parts' graphs may be in memory at once, ≥ 1.

    Attributes:
        linearisations: Forward passes made for curvature only.
    """

    def __init__(self, terms: Sequence[Term], kind: Kind, in_memory: int) -> None:
        self._terms, self._kind = terms, kind
        kept = terms[: None if len(terms) <= in_memory else in_memory - 1]
        self._kept = {term.forward for term in kept}
        self._operators: dict[Forward, GGN | Hessian] = {}
        self._roots: list[list[Roots]] = []
        self.linearisations = 0

    def keeps(self, forward: Forward) -> bool:
        """Whether this part stays in memory."""
        return forward in self._kept

    def needs_graph(self, forward: Forward, point: Point) -> bool:
        """Whether a point that was evaluated for its gradient must keep the graph, to be taken over."""
        return self.keeps(forward) and self._kind.needs_graph_at(point)

    def take_over(self, forward: Forward, point: Point) -> None:
        """Use a point that was evaluated for its gradient, if that part stays in memory."""
        if self.keeps(forward):
            self._operate(forward, point)

    def prepare(self) -> None:
        """Set up all parts that stay in memory."""
        for term in self._terms:
            if term.forward in self._kept and term.forward not in self._operators:
                self._linearise(term)

    def __call__(self, v: Tensor) -> Tensor:
        """Multiply a vector of shape (P,)."""
        total = None
        for term in self._terms:
            operator = self._operators.get(term.forward)
            if operator is None:
                operator = self._linearise(term)
            elif term.forward not in self._kept:
                self.linearisations += 1  # it was released: the product runs its constants again
            product = (operator @ v).mul_(term.weight)
            total = product if total is None else total.add_(product)
            if term.forward not in self._kept:
                self._release(term.forward)
        assert total is not None
        return total

    def size(self) -> tuple[int, int] | str:
        """Return how many rows `factor` has, of how many samples, or say why it has none."""
        if len(self._kept) < len({term.forward for term in self._terms}):
            return "not all micro-batches of the curvature are in memory at once (micro_batches_in_memory)"
        operators = self._ggns()
        if len(operators) < len(self._terms):
            return "the Hessian of the loss is no product of matrices"
        try:
            self._roots = [operator.roots() for operator in operators]
        except NotBySampleError as error:
            return str(error)
        every = [root for found in self._roots for root in found]
        return sum(root.rows for root in every), sum(len(root.blocks) for root in every)

    def factor(self, share: float = 1.0) -> tuple[Rows, Tensor, int] | str:
        """Return R of shape (M, P) and ρ of shape (M,) with C = RᵀR and g = Rᵀρ, or say why there are none.

        `size` is asked first.

        Args:
            share: Of the samples of each part, that R is of; see `Roots.sample`.

        Returns:
            R, ρ, and how many backward passes the rows took; or the reason.
        """
        if share < 1.0:
            self._roots = [[root.sample(share) for root in found] for found in self._roots]
        try:
            pieces = [operator.rows(found) for operator, found in zip(self._ggns(), self._roots, strict=True)]
        except NotBySampleError as error:
            return str(error)
        for term, (R, rho, _) in zip(self._terms, pieces, strict=True):
            if term.weight != 1.0:
                R.mul_(term.weight**0.5)
                rho.mul_(term.weight**0.5)
        passes = max(passes for _, _, passes in pieces)
        return stacked([R for R, _, _ in pieces]), torch.cat([rho for _, rho, _ in pieces]), passes

    def change(self, p: Tensor) -> Tensor:
        """Return √H (z(θ + p) − z(θ)) in the rows of the last factor: shape (M,)."""
        pieces = zip(self._terms, self._ggns(), self._roots, strict=True)
        return torch.cat([term.weight**0.5 * operator.change(found, p) for term, operator, found in pieces])

    def pulled_change(self, p: Tensor) -> Tensor | None:
        """Return Jᵀ H (z(θ + p) − z(θ)), shape (P,); None where not every part has a program and is in memory."""
        operators = self._ggns()
        if len(operators) < len(self._terms) or not all(operator.can_move for operator in operators):
            return None
        parts = zip(self._terms, operators, strict=True)
        return torch.stack([term.weight * operator.pulled_change(p) for term, operator in parts]).sum(dim=0)

    def _ggns(self) -> list[GGN]:
        operators = (self._operators.get(term.forward) for term in self._terms)
        return [operator for operator in operators if isinstance(operator, GGN)]

    def _linearise(self, term: Term) -> GGN | Hessian:
        self.linearisations += 1
        return self._operate(term.forward, term.evaluate())

    def _operate(self, forward: Forward, point: Point) -> GGN | Hessian:
        operator = self._operators[forward] = self._kind.at(point)
        if not operator.needs_graph:
            point.drop_graph()
        return operator

    def _release(self, forward: Forward) -> None:
        """Make room for the next part: what is large goes, what is small and costly to find again stays."""
        operator = self._operators[forward]
        if operator.needs_graph:
            del self._operators[forward]
        else:
            operator.release()
