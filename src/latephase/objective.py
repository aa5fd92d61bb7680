"""What a step may ask of the problem: its quadratic expansion at θ, and the loss at trial points."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from latephase.checks import real_vector, vector_map
from latephase.curvature.accumulate import Accumulated, Kind, Term
from latephase.curvature.point import evaluate
from latephase.curvature.returned import loss_and_outputs
from latephase.distributed import ALONE, Ranks
from latephase.failures import is_failed_trial
from latephase.micro_batches import Batches
from latephase.outer_rows import whole
from latephase.parameters import Parameters
from latephase.parts.solver import Curvature, Factor
from latephase.records import Counts
from latephase.transaction import Transaction, as_they_are
from latephase.trial_points import at_trial_point
from latephase.vectors import plus_scaled

Operator = Callable[[Tensor], Tensor]


class Expansion(NamedTuple):
    """The objective around θ.

    Attributes:
        theta: θ, shape (P,).
        loss_model: The loss on the model batch B; None where the user brought the gradient.
        loss: The loss on the evaluation batch B̄.
        gradient: g on B, shape (P,); the caller may overwrite it.
        curvature: `v -> Cv` on B, for vectors of shape (P,).
    """

    theta: Tensor
    loss_model: float | None
    loss: float
    gradient: Tensor
    curvature: Curvature


class Objective(Protocol):
    """A function of θ that a step minimises: weight decay is in it, damping is not."""

    @property
    def counts(self) -> Counts:
        """The work done so far."""

    def expand(self) -> Expansion:
        """Return losses, gradient and curvature at θ."""

    def loss(self, theta: Tensor) -> float:
        """Return the loss on B̄ at a trial point, shape (P,); infinite where there is none."""

    def gradient(self, theta: Tensor) -> tuple[float, Tensor] | None:
        """Return loss and gradient on B at a trial point; None where the gradient is the caller's own."""


class Given(NamedTuple):
    """What the user has already: the gradient, shape (P,), and products with the curvature, without weight decay."""

    grad: Tensor | None = None
    mvp: Operator | None = None


class ClosureObjective:
    """The objective that closures compute: `L(θ) = Σ weight · loss(θ) + ½ Σ wd · θ²`.

    The second term enters loss, gradient and curvature alike.

    Args:
        parameters: The flat view of θ, which they hold.
        transaction: Makes all evaluations see one network.
        batches: The closures, with their weights.
        kind: The kind of curvature.
        given: What need not be computed.
        in_memory: How many micro-batches' graphs may be in memory at once.
        ranks: The processes over which all sums are taken; weights are those in the sum over all of them.

    Attributes:
        shift: Weight decay, what it adds to the curvature's diagonal: a number, or a vector of shape (P,).
    """

    def __init__(
        self,
        parameters: Parameters,
        transaction: Transaction,
        batches: Batches,
        kind: Kind,
        given: Given = Given(),  # noqa: B008 — a tuple
        in_memory: int = 1,
        ranks: Ranks = ALONE,
    ) -> None:
        self._ranks = ranks
        self._parameters, self._transaction = parameters, transaction
        self._theta = transaction.theta
        self.shift = parameters.spread("weight_decay")
        self._batches = batches
        self._grad = None if given.grad is None else real_vector("grad", given.grad, like=self._theta)
        self._mvp = None if given.mvp is None else vector_map("mvp", given.mvp)
        terms = [
            Term(part.forward, part.weight, partial(evaluate, part.forward, parameters, transaction.repeat(number)))
            for number, part in enumerate(batches.curvature)
        ]
        self._curvature = None if self._mvp else Accumulated(terms, kind, in_memory)
        self._losses = self._gradients = self._products = 0
        self._loss_model = math.nan

    @property
    def counts(self) -> Counts:
        """See `Objective`."""
        linearisations = 0 if self._curvature is None else self._curvature.linearisations
        return Counts(self._losses, self._gradients, linearisations, self._products)

    def expand(self) -> Expansion:
        """See `Objective`."""
        loss_model, gradient = self._loss_and_gradient()
        if self._curvature is not None:
            self._ranks.each("the curvature", self._curvature.prepare)
        judged_already = self._batches.evaluation == self._batches.gradient and loss_model is not None
        unknown = self._ranks.number("whether the loss is known", lambda: float(not judged_already))
        if loss_model is not None and unknown == 0.0:
            loss = loss_model
        else:
            loss = self._ranks.number("the loss", self._loss_here) + self._penalty(self._theta)
        return Expansion(self._theta, loss_model, loss, gradient, _ModelCurvature(self))

    def loss(self, theta: Tensor) -> float:
        """See `Objective`. A graph is built, as for any closure: it may differentiate inside."""
        return self._ranks.number("the loss at a trial point", lambda: self._loss_at(theta)) + self._penalty(theta)

    def gradient(self, theta: Tensor) -> tuple[float, Tensor] | None:
        """See `Objective`."""
        if self._grad is not None:
            return None
        gradient = self._ranks.sum("the gradient at a trial point", lambda: self._gradient_at(theta))
        loss = self._ranks.number("its loss", lambda: self._loss_model)
        return loss + self._penalty(theta), gradient.add_(self.shift * theta)

    def _loss_and_gradient(self) -> tuple[float | None, Tensor]:
        """The loss on B and its gradient."""
        gradient = self._ranks.sum("the gradient", self._gradient_here)
        gradient += self.shift * self._theta
        if self._grad is not None:
            return None, gradient
        return self._ranks.number("the loss on the model batch", lambda: self._loss_model) + self._penalty(
            self._theta
        ), gradient

    def product(self, v: Tensor) -> Tensor:
        """Return Cv on B, weight decay included."""
        self._products += 1
        return plus_scaled(self._ranks.sum("a product", lambda: self._product(v)), self.shift, v)

    def factor(self, choose: Callable[[int, int], float]) -> Factor | str:
        """Return C on B as a product of matrices, or say why there is none; see `Curvature.factor`."""
        if self._curvature is None:
            return "the products are the caller's own"
        sizes = self._ranks.gather("the size of the rows", self._curvature.size)
        known = [size for size in sizes if not isinstance(size, str)]
        if len(known) < len(sizes):
            return next(reason for reason in sizes if isinstance(reason, str))
        rows, samples = map(sum, zip(*known, strict=True))
        share = float(choose(rows, samples))
        made = self._ranks.each("the rows", partial(self._curvature.factor, share))
        reasons = self._ranks.gather("why there are none", lambda: made if isinstance(made, str) else "")
        if isinstance(made, str) or any(reasons):
            return next(filter(None, reasons))
        R, rho, passes = made
        self._products += passes
        if self._ranks is not ALONE:  # the ranks meet in whole rows
            R = self._ranks.rows("R", lambda: whole(R))
        return Factor(R, self._ranks.rows("ρ", lambda: rho), self.shift)

    def change(self, p: Tensor) -> Tensor:
        """Return √H (z(θ + p) − z(θ)) on B; see `Curvature.change`."""
        assert self._curvature is not None
        self._losses += len(self._batches.curvature)
        return self._ranks.rows("the change of the outputs", partial(self._curvature.change, p))

    def pulled_change(self, p: Tensor) -> Tensor | None:
        """Return Jᵀ H (z(θ + p) − z(θ)) on B, weight decay included; see `Curvature.pulled_change`."""
        if self._curvature is None:
            return None
        self._gradients += len(self._batches.curvature)  # a forward and a backward pass
        pulled = self._ranks.each("the change of the outputs", partial(self._curvature.pulled_change, p))
        missing = self._ranks.number("whether it is there", lambda: float(pulled is None))
        if pulled is None or missing > 0.0:
            return None
        return plus_scaled(self._ranks.sum("its pull-back", lambda: pulled), self.shift, p)

    # ------------------------------------------------------------------ this rank's part, without weight decay

    def _gradient_here(self) -> Tensor:
        """The gradient on B at θ; what stays in memory for the curvature is handed over to it."""
        if self._grad is not None:
            return self._batches.gradient[0].weight * self._grad
        gradient, self._loss_model = torch.zeros_like(self._theta), 0.0
        for number, (forward, weight) in enumerate(self._batches.gradient):
            point = evaluate(forward, self._parameters, self._transaction.repeat(number))
            needs_graph = self._curvature is not None and self._curvature.needs_graph(forward, point)
            gradient += weight * point.gradient(retain_graph=needs_graph)
            self._loss_model += weight * float(point.loss.detach())
            self._gradients += 1
            if self._curvature is not None:
                self._curvature.take_over(forward, point)
        return gradient

    def _gradient_at(self, theta: Tensor) -> Tensor:
        """The gradient on B at a trial point."""
        gradient, self._loss_model = torch.zeros_like(theta), 0.0
        with at_trial_point(self._parameters, theta, self._theta):
            for number, (forward, weight) in enumerate(self._batches.gradient):
                with self._transaction.evaluation(number) as evaluation, torch.enable_grad(), as_they_are():
                    value, _ = loss_and_outputs(forward(), evaluation.differentiated, forward)
                with evaluation.as_left():
                    pieces = torch.autograd.grad(value, self._parameters.tensors, allow_unused=True)
                gradient += weight * self._parameters.join(pieces)
                self._loss_model += weight * float(value.detach())
                self._gradients += 1
        return gradient

    def _product(self, v: Tensor) -> Tensor:
        if self._curvature is not None:
            return self._curvature(v)
        assert self._mvp is not None
        return self._batches.curvature[0].weight * self._mvp(v)

    def _loss_at(self, theta: Tensor) -> float:
        """The loss on B̄ at a trial point; infinite where there is none."""
        try:
            with at_trial_point(self._parameters, theta, self._theta):
                return self._loss_here()
        except Exception as error:
            if is_failed_trial(error):
                return math.inf
            raise

    def _loss_here(self) -> float:
        """The loss on B̄ where the parameters are."""
        loss = 0.0
        for number, (forward, weight) in enumerate(self._batches.evaluation):
            with self._transaction.evaluation(number) as evaluation, torch.enable_grad(), as_they_are():
                value, _ = loss_and_outputs(forward(), evaluation.differentiated, forward)
            loss += weight * float(value.detach())
            self._losses += 1
        return loss

    def _penalty(self, theta: Tensor) -> float:
        if isinstance(self.shift, float) and self.shift == 0.0:
            return 0.0
        return 0.5 * float((self.shift * theta).dot(theta))


class _ModelCurvature:
    """The curvature of an objective at θ."""

    def __init__(self, objective: ClosureObjective) -> None:
        self.factor, self.change, self.pulled_change = objective.factor, objective.change, objective.pulled_change
        self.shift, self._product = objective.shift, objective.product

    def __call__(self, v: Tensor) -> Tensor:
        return self._product(v)


class TrialLosses:
    """Losses on B̄ at θ + scale · p_n, each computed once, whoever asks.

    Args:
        objective: Evaluates them.
        theta: θ, shape (P,).
        steps: n → p_n, shape (P,).
        known: n → the loss after p_n, where it is known already.
    """

    def __init__(
        self, objective: Objective, theta: Tensor, steps: Mapping[int, Tensor], known: Mapping[int, float]
    ) -> None:
        self._objective, self._theta, self._steps = objective, theta, steps
        self._known: dict[tuple[int, float], float] = {(n, 1.0): loss for n, loss in known.items()}

    def all_equal(self, loss_0: float) -> bool:
        """Whether the loss was `loss_0` to the bit at every trial point, and there were several."""
        return len(self._known) > 1 and all(loss == loss_0 for loss in self._known.values())

    def __call__(self, n: int, scale: float | Tensor = 1.0) -> float:
        """Return the loss after the step p_n, scaled by a number or entry by entry (a vector of shape (P,))."""
        if isinstance(scale, Tensor):
            return self._objective.loss(plus_scaled(self._theta, scale, self._steps[n]))
        if (n, scale) not in self._known:
            self._known[n, scale] = self._objective.loss(plus_scaled(self._theta, scale, self._steps[n]))
        return self._known[n, scale]
