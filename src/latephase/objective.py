"""What a step may ask of the problem: the loss at a trial point, loss and gradient, the curvature."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from latephase.checks import non_negative, real_vector, vector_map
from latephase.curvature import GGN, Hessian
from latephase.curvature.options import DEFAULT_OPTIONS, Options
from latephase.curvature.point import Forward, Point, evaluate, split_return
from latephase.failures import is_failed_trial
from latephase.parameters import Parameters, plus_scaled
from latephase.records import Counts
from latephase.transaction import Transaction


class MicroBatch(NamedTuple):
    """A closure over a part of a batch, and the weight of its loss in the batch's loss."""

    forward: Forward
    weight: float = 1.0


def micro_batches(
    model: Callable[[Any], Any],
    loss_func: Callable[[Any, Any], Tensor],
    datalist: Sequence[tuple[Any, Any]],
    reduction: str | Callable[[Any], float],
    device: torch.device,
    closures: dict[int, Forward],
) -> list[MicroBatch]:
    """Turn a list of ``(inputs, targets)`` into closures whose weighted losses add up to the loss on their union.

    Args:
        model: Maps inputs to outputs.
        loss_func: Maps ``(outputs, targets)`` to the loss.
        datalist: The micro-batches.
        reduction: How ``loss_func`` reduces over samples: ``"sum"``; ``"mean"``, which weights each micro-batch by
            ``targets.shape[0]``; or a function ``targets -> weight`` for losses that are means over something else,
            such as the tokens that are not padding.
        device: Inputs and targets are moved there when they are used.
        closures: Closures made before, by the id of their list entry. A micro-batch that stands in several lists
            has one closure, so that the graph of one forward pass can serve them all.
    """
    check_reduction(reduction)
    if len(datalist) == 0:
        raise ValueError("a list of micro-batches must not be empty")
    counts = [_weight(targets, reduction) for _, targets in datalist]
    total = 1.0 if reduction == "sum" else sum(counts)
    if total == 0.0:
        raise ValueError(f"reduction={reduction!r} gives all micro-batches the weight 0")

    def closure(entry: tuple[Any, Any]) -> Forward:
        def forward() -> tuple[Tensor, Any]:
            inputs, targets = entry  # The entry lives for as long as its closure, so that no id is used twice.
            outputs = model(_moved(inputs, device))
            return loss_func(outputs, _moved(targets, device)), outputs

        return forward

    for entry in datalist:
        closures.setdefault(id(entry), closure(entry))
    return [MicroBatch(closures[id(entry)], n / total) for entry, n in zip(datalist, counts, strict=True)]


def check_reduction(reduction: object) -> None:
    """Raise ValueError unless ``reduction`` is one of the allowed forms."""
    if reduction not in ("mean", "sum") and not callable(reduction):
        raise ValueError(f'reduction must be "mean", "sum" or a function targets -> weight, not {reduction!r}')


def _weight(targets: Any, reduction: str | Callable[[Any], float]) -> float:
    if callable(reduction):
        return non_negative("the weight that reduction returns", reduction(targets))
    if reduction == "sum":
        return 1.0
    if not isinstance(targets, Tensor) or targets.dim() == 0:
        raise TypeError(
            'with reduction="mean" the targets must be tensors whose first dimension counts the samples, '
            f"not {type(targets).__name__}; give reduction a function targets -> weight"
        )
    return float(targets.shape[0])


def _moved(data: Any, device: torch.device) -> Any:
    return pytree.tree_map(lambda leaf: leaf.to(device) if hasattr(leaf, "to") else leaf, data)


class Objective:
    """The problem as one step sees it: a loss with weight decay, on the batches of this step.

    ``L(θ) = Σ weight · loss(θ) + ½ Σ wd · θ²``, where the second term enters loss, gradient and curvature alike.

    Args:
        parameters: The flat view of θ.
        theta: θ as the step finds it, shape (P,).
        transaction: Makes all evaluations see one network.
        gradient: The micro-batches of the model batch B for the gradient.
        curvature: Those for the curvature.
        evaluation: Those of the evaluation batch B̄.
        operator: The curvature operator's class.
        product_options: How its products are computed.
        weight_decay: wd, a number or a vector of shape (P,).
        grad: The gradient without weight decay, shape (P,), where the user brings it.
        mvp: ``v -> Cv`` without weight decay and damping, where the user brings it.
        micro_batches_in_memory: How many micro-batches' graphs may be in memory at once.
    """

    def __init__(
        self,
        parameters: Parameters,
        theta: Tensor,
        transaction: Transaction,
        *,
        gradient: Sequence[MicroBatch],
        curvature: Sequence[MicroBatch],
        evaluation: Sequence[MicroBatch],
        operator: type[GGN] | type[Hessian],
        product_options: Options = DEFAULT_OPTIONS,
        weight_decay: float | Tensor,
        grad: Tensor | None = None,
        mvp: Callable[[Tensor], Tensor] | None = None,
        micro_batches_in_memory: int = 1,
    ) -> None:
        self.parameters = parameters
        self.theta = theta
        self._transaction = transaction
        self._gradient, self._curvature, self._evaluation = list(gradient), list(curvature), list(evaluation)
        self._operator, self._product_options = operator, product_options
        self._weight_decay = weight_decay
        self._grad = None if grad is None else real_vector("grad", grad, like=theta)
        self._mvp = None if mvp is None else vector_map("mvp", mvp)
        # While one micro-batch is being worked on its graph is in memory too; where all fit, none is worked on twice.
        fits = len(self._curvature) <= micro_batches_in_memory
        kept = self._curvature[: None if fits else micro_batches_in_memory - 1]
        self._kept = set() if mvp is not None else {micro_batch.forward for micro_batch in kept}
        self._operators: dict[Forward, GGN | Hessian] = {}
        self._loss_on_model_batch: float | None = None
        self._losses = self._gradients = self._linearisations = self._products = 0

    @property
    def counts(self) -> Counts:
        """The work done so far."""
        return Counts(self._losses, self._gradients, self._linearisations, self._products)

    def loss_and_grad(self) -> tuple[float | None, Tensor]:
        """Return the loss on B at θ and its gradient, shape (P,).

        The loss is None where the user brought the gradient.
        """
        if self._grad is not None:
            return None, self._grad + self._weight_decay * self.theta
        loss, grad = self._penalty(self.theta), self._weight_decay * self.theta
        for number, micro_batch in enumerate(self._gradient):
            point = self._evaluate(number, micro_batch)
            keep = micro_batch.forward in self._kept
            needs_graph = keep and self._operator.needs_graph_at(point, self._product_options)
            grad += micro_batch.weight * point.gradient(retain_graph=needs_graph)
            loss += micro_batch.weight * float(point.loss.detach())
            self._gradients += 1
            if keep:
                self._operate(micro_batch, point)
        if self._evaluation == self._gradient:
            self._loss_on_model_batch = loss
        return loss, grad

    def curvature(self) -> Callable[[Tensor], Tensor]:
        """Return ``v -> Cv``, the curvature at θ on B, weight decay included, damping not."""
        if self._mvp is not None:
            return self._counted(self._mvp)
        for number, micro_batch in enumerate(self._curvature):
            if micro_batch.forward in self._kept and micro_batch.forward not in self._operators:
                self._linearise(number, micro_batch)

        def product(v: Tensor) -> Tensor:
            total = None
            for number, micro_batch in enumerate(self._curvature):
                operator = self._operators.get(micro_batch.forward)
                if operator is None:
                    operator = self._linearise(number, micro_batch)
                elif micro_batch.forward not in self._kept:
                    self._linearisations += 1  # it was released: the product runs its constants again
                term = (operator @ v).mul_(micro_batch.weight)
                total = term if total is None else total.add_(term)
                if micro_batch.forward not in self._kept:
                    self._release(micro_batch)
            assert total is not None
            return total

        return self._counted(product)

    def loss(self, theta: Tensor) -> float:
        """Return the loss on B̄ at ``theta``, shape (P,); infinite where the closure cannot compute one there.

        The parameters hold ``theta`` meanwhile. A graph is built, as for any closure: it may differentiate inside.
        """
        if theta is self.theta:
            return self._loss_on_evaluation_batch(theta)
        try:
            with self.parameters.at(theta, home=self.theta):
                return self._loss_on_evaluation_batch(theta)
        except Exception as error:
            if is_failed_trial(error):
                return math.inf
            raise

    def _loss_on_evaluation_batch(self, theta: Tensor) -> float:
        loss = self._penalty(theta)
        for number, micro_batch in enumerate(self._evaluation):
            with self._transaction.evaluation(number), torch.enable_grad():
                value, _ = split_return(micro_batch.forward(), micro_batch.forward)
            loss += micro_batch.weight * float(value.detach())
            self._losses += 1
        return loss

    def loss_here(self) -> float:
        """Return the loss on B̄ at θ; known already where B̄ = B."""
        return self.loss(self.theta) if self._loss_on_model_batch is None else self._loss_on_model_batch

    def _penalty(self, theta: Tensor) -> float:
        if isinstance(self._weight_decay, float) and self._weight_decay == 0.0:
            return 0.0
        return 0.5 * float((self._weight_decay * theta).dot(theta))

    def _evaluate(self, number: int, micro_batch: MicroBatch) -> Point:
        return evaluate(micro_batch.forward, self.parameters, self._transaction.repeat(number))

    def _linearise(self, number: int, micro_batch: MicroBatch) -> GGN | Hessian:
        self._linearisations += 1
        return self._operate(micro_batch, self._evaluate(number, micro_batch))

    def _operate(self, micro_batch: MicroBatch, point: Point) -> GGN | Hessian:
        operator = self._operators[micro_batch.forward] = self._operator(point, self._product_options)
        if not operator.needs_graph:
            point.drop_graph()
        return operator

    def _release(self, micro_batch: MicroBatch) -> None:
        """Make room for the next micro-batch: what is large goes, what is small and costly to find again stays."""
        operator = self._operators[micro_batch.forward]
        if operator.needs_graph:
            del self._operators[micro_batch.forward]
        else:
            operator.release()

    def _counted(self, product: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def counted(v: Tensor) -> Tensor:
            self._products += 1
            return plus_scaled(product(v), self._weight_decay, v)

        return counted


class TrialLosses:
    """Losses on B̄ at θ + scale · p_n, each computed once, whoever asks.

    Args:
        objective: Evaluates them.
        steps: n → p_n, shape (P,).
    """

    def __init__(self, objective: Objective, steps: Mapping[int, Tensor]) -> None:
        self._objective = objective
        self._steps = steps
        self._known: dict[tuple[int, float], float] = {}

    def all_equal(self, loss_0: float) -> bool:
        """Whether the loss was ``loss_0`` to the bit at every trial point, and there were several."""
        return len(self._known) > 1 and all(loss == loss_0 for loss in self._known.values())

    def __call__(self, n: int, scale: float | Tensor = 1.0) -> float:
        """Return the loss after the step p_n, scaled by a number or entry by entry (a vector of shape (P,))."""
        if isinstance(scale, Tensor):
            return self._objective.loss(plus_scaled(self._objective.theta, scale, self._steps[n]))
        if (n, scale) not in self._known:
            self._known[n, scale] = self._objective.loss(plus_scaled(self._objective.theta, scale, self._steps[n]))
        return self._known[n, scale]
