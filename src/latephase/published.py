"""Helpers that the authors' code publishes beside its steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from latephase.checks import choice, function, pairs, positive_fraction
from latephase.checkups import differing_parts, fingerprint
from latephase.curvature.accumulate import Kind
from latephase.curvature.fisher import diagonal_empirical_fisher
from latephase.distributed import find_ranks
from latephase.micro_batches import Batches, Cutter, LossFunction, Model, Pair, Reduction
from latephase.objective import ClosureObjective
from latephase.parameters import Parameters
from latephase.parts.preconditioners import diagonal_preconditioner
from latephase.transaction import Transaction

Operator = Callable[[Tensor], Tensor]


class PublishedHelpers:
    """Methods of an optimizer with parameter groups.

    Attributes:
        param_groups: Its groups.
        kind: The kind of curvature of its steps.
        process_group: The processes whose inputs count together.
    """

    param_groups: list[dict[str, Any]]
    kind: Kind
    process_group: object | None

    def get_preconditioner(
        self,
        model: torch.nn.Module,
        loss_func: LossFunction,
        inputs: Tensor,
        targets: Tensor,
        reduction: str,
        exponent: float | None = None,
    ) -> Operator:
        """Return Martens' preconditioner for the present λ, to be given to a step as `M_func`.

        `(diag(F) + wd + λ)^(-exponent)` with F the empirical Fisher matrix (Martens 2010, Section 4.7).

        Args:
            model: Maps inputs to outputs; BatchNorm layers must be in eval mode.
            loss_func: Maps `(outputs, targets)` to the loss.
            inputs: N samples.
            targets: N targets.
            reduction: How `loss_func` reduces over samples, `"mean"` or `"sum"`.
            exponent: > 0 and at most 1. (0.75: Martens 2010, Section 4.7.)

        Raises:
            TypeError: For an argument of another type.
            ValueError: For one that is out of range, or a layer that mixes the samples of a batch.
        """
        for name, value, kind in (
            ("model", model, torch.nn.Module),
            ("inputs", inputs, Tensor),
            ("targets", targets, Tensor),
        ):
            if not isinstance(value, kind):
                raise TypeError(f"{name} must be a torch {kind.__name__}, not {type(value).__name__}")
        function("loss_func", loss_func)
        choice("reduction", reduction, ["mean", "sum"])
        exponent = 0.75 if exponent is None else positive_fraction("exponent", exponent)
        parameters = Parameters(self.param_groups)
        ranks = find_ranks(self.process_group, parameters.device)

        def weighted() -> Tensor:
            share = len(inputs) / max(examples, 1.0) if reduction == "mean" else 1.0
            with Transaction(parameters).evaluation():
                return share * diagonal_empirical_fisher(
                    model, loss_func, inputs, targets, parameters, reduction=reduction
                )

        examples = ranks.number("the number of inputs", lambda: len(inputs))
        diagonal = ranks.sum("the diagonal of the Fisher matrix", weighted)
        diagonal += parameters.spread("weight_decay")
        return diagonal_preconditioner(diagonal, parameters.spread("damping"), exponent)

    def test_reduction(
        self,
        model: Model,
        loss_func: LossFunction,
        datalist: Sequence[tuple[Tensor, Tensor]],
        reduction: Reduction,
    ) -> None:
        """Check that micro-batches add up: loss, gradient and a curvature product, against those on their union.

        Args:
            model: As for `HessianFree.acc_step`.
            loss_func: Likewise.
            datalist: At least two micro-batches, better of different sizes.
            reduction: As for `HessianFree.acc_step`.

        Raises:
            RuntimeError: If they do not, naming what differs. BatchNorm in training mode and dropout do that too.
            TypeError: For an argument of another type.
            ValueError: For a reduction that there is not, or fewer than two micro-batches.
        """
        parameters = Parameters(self.param_groups)
        cut = Cutter(model, loss_func, reduction, parameters.device)
        entries = pairs("datalist", datalist)
        if len(entries) < 2:
            raise ValueError(f"datalist must have at least two micro-batches to compare, not {len(entries)}")
        union: list[Pair] = [(torch.cat([x for x, _ in entries]), torch.cat([y for _, y in entries]))]
        transaction = Transaction(parameters)
        prints = []
        for part in (cut("datalist", entries), cut("datalist", union)):
            objective = ClosureObjective(parameters, transaction, Batches(part, part, part), self.kind)
            prints.append(fingerprint(parameters, objective))
        transaction.rollback()
        differing = differing_parts(*prints)
        if differing:
            raise RuntimeError(
                f"with reduction={reduction!r} the micro-batches do not add up to their union in: "
                f"{', '.join(differing)}; is it the reduction that loss_func uses, and is the model in eval mode?"
            )
