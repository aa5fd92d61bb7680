"""What surrounds every step: parameter groups, the optimizer's state, and one transaction with its record."""

from __future__ import annotations

import dataclasses
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from latephase.checks import boolean, function, non_negative, positive_bounds, vector_map
from latephase.checkups import (
    check_deterministic,
    refuse_cached_parametrizations,
    refuse_grad_scaler,
    refuse_missing_closure,
    warn_caller,
)
from latephase.curvature.returned import Forward
from latephase.distributed import Ranks, check_group, find_ranks
from latephase.objective import Objective
from latephase.parameters import Parameters, refuse_sharded
from latephase.parts.damping import clipped
from latephase.parts.solver import Memory
from latephase.records import Outcome, StepRecord, StepUndoneWarning
from latephase.transaction import Transaction, settled

Operator = Callable[[Tensor], Tensor]

OPTIONS = ("lr", "damping", "weight_decay")
BEFORE_A_STEP = "parameters, options or the remembered solution before a step"
AFTER_A_STEP = "parameters, options or the outcome after a step"


class DampedOptimizer(torch.optim.Optimizer, ABC):
    """An optimizer with a damping λ and one remembered solution, whose steps are all or nothing.

    Args:
        params: Parameters or parameter groups.
        defaults: `lr`, `damping` and `weight_decay` of groups that do not name them.
        damping_bounds: λ stays between these, 0 < lower ≤ upper.
        process_group: The processes that take each step together.
        verbose: Whether to print each step's record.
    """

    _closure: Forward | None = None  # not of the state: a copy has none
    _evaluate: Forward | None = None
    _gradient: Tensor | None = None  # of the present step

    def __init__(
        self,
        params: ParamsT,
        defaults: dict[str, float],
        damping_bounds: tuple[float, float],
        process_group: object | None,
        verbose: bool,
    ) -> None:
        self.process_group = check_group(process_group)
        self.damping_bounds = positive_bounds("damping_bounds", damping_bounds)
        self.verbose = boolean("verbose", verbose)
        self.last_step: StepRecord | None = None
        super().__init__(params, dict(defaults))

    # ------------------------------------------------------------------ a step

    @contextmanager
    def _attended(self, *, by_hand: bool = False) -> Iterator[Ranks]:
        """Find those who take the step together, and tell them of exceptions here."""
        first = next((p for group in self.param_groups for p in group["params"]), None)
        device = torch.device("cpu") if first is None else first.device
        ranks = find_ranks(self.process_group, device, by_hand=by_hand)
        with ranks.attended():
            refuse_grad_scaler(self)
            yield ranks

    @abstractmethod
    def _update(self, objective: Objective, parameters: Parameters, M: Operator | None) -> StepRecord:
        """Take one step, and return its record."""

    def _run(
        self,
        build: Callable[[Parameters, Transaction], Objective],
        M: Operator | None,
        ranks: Ranks,
        *,
        test_deterministic: bool,
    ) -> float:
        """Build an objective and take a step, all or nothing; keep the record, and return the loss after it."""
        start = time.perf_counter()
        boolean("test_deterministic", test_deterministic)
        refuse_cached_parametrizations()
        for group in self.param_groups:
            self._check_group(group)
        if M is not None:
            M = vector_map("M_func", M)
        parameters = Parameters(self.param_groups)

        def attempt(transaction: Transaction) -> StepRecord:
            ranks.same(BEFORE_A_STEP, lambda: ([transaction.theta, self._last_solution(parameters)], self._options()))
            objective = build(parameters, transaction)
            if test_deterministic and parameters.tensors:
                check_deterministic(parameters, *(build(parameters, transaction) for _ in range(2)))
            update = self._update if parameters.tensors else self._nothing_to_do
            record = update(objective, parameters, M)
            if self._gradient is not None:
                self._gradient -= parameters.spread("weight_decay") * transaction.theta
            ranks.same(AFTER_A_STEP, lambda: ([parameters.read()], [self._options(), record.outcome]))
            return dataclasses.replace(record, counts=objective.counts)

        with torch.enable_grad():
            record = settled(parameters, attempt, optimizer=self, undone=lambda record: record.outcome.undone)
        self._opt_called = True  # What a learning rate scheduler looks for; it only sees step() by itself.
        self.last_step = dataclasses.replace(record, seconds=time.perf_counter() - start)
        if not record.outcome.undone and self._gradient is not None:
            for p, piece in zip(parameters.tensors, parameters.split(self._gradient), strict=True):
                p.grad = piece
        self._gradient = None
        if self.verbose and ranks.rank == 0:
            print(self.last_step)  # noqa: T201
        if record.outcome.undone:
            warn_caller(record.outcome.value, StepUndoneWarning)
        return record.loss_after

    def set_closure(self, closure: Forward | None, evaluate: Forward | None = None) -> None:
        """Set what a step uses that is called without a closure, as by a trainer that passes none on.

        Args:
            closure: As for `step`; it may be set afresh for each batch, or look up the present one. None for none.
            evaluate: Likewise.
        """
        self._closure = None if closure is None else function("closure", closure)
        self.set_evaluation(evaluate)

    def set_evaluation(self, evaluate: Forward | None) -> None:
        """Set what a step judges itself by that is called without `evaluate`, whatever its closure; None for none."""
        self._evaluate = None if evaluate is None else function("evaluate", evaluate)

    def _without_closure(self) -> None:
        """Do nothing where a checkpointing tool calls a fresh optimizer to make it create its state; else refuse."""
        grads = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        refuse_missing_closure(used=self.last_step is not None or any(bool(g.any()) for g in grads))

    def _nothing_to_do(self, objective: Objective, parameters: Parameters, M: Operator | None) -> StepRecord:
        loss, damping = objective.loss(parameters.read()), self._first("damping")
        return StepRecord(Outcome.NO_PARAMETERS, None, loss, loss, damping, damping)

    def _opened(self, loss_model: float | None, loss_0: float, g: Tensor) -> StepRecord:
        """Open the record of a step; it ends here if a number is not finite, or if there is nowhere to go."""
        damping, self._gradient = self._first("damping"), g.clone()
        record = StepRecord(Outcome.ACCEPTED, loss_model, loss_0, loss_0, damping, damping, grad_norm=float(g.norm()))
        if loss_model is not None and not math.isfinite(loss_model):
            return dataclasses.replace(record, outcome=Outcome.NON_FINITE_LOSS)
        if not bool(g.isfinite().all()):
            return dataclasses.replace(record, outcome=Outcome.NON_FINITE_GRADIENT)
        if not math.isfinite(loss_0):
            return dataclasses.replace(record, outcome=Outcome.NON_FINITE_EVALUATION)
        return record if bool(g.any()) else dataclasses.replace(record, outcome=Outcome.ZERO_GRADIENT)

    # ------------------------------------------------------------------ state

    def _options(self) -> list[list[float]]:
        """The options of all groups."""
        return [[float(group[name]) for name in OPTIONS] for group in self.param_groups]

    def _first(self, option: str) -> float:
        """An option of the first parameter group, the one that records name."""
        return float(self.param_groups[0][option])

    def _last_solution(self, parameters: Parameters) -> Tensor:
        """What minimised the last step's model, shape (P,); zero where nothing is remembered."""
        return parameters.join([self.state[p].get("cg_solution") for p in parameters.tensors])

    def _memory(self, parameters: Parameters) -> Memory | None:
        """What the last path asked to be remembered; None if it asked for nothing, or parameters have come since."""
        states = [self.state[p] for p in parameters.tensors]
        if any("metric" not in state or "numbers" not in state for state in states):
            return None
        return Memory(torch.cat([state["metric"] for state in states]), states[0]["numbers"])

    def _remember(self, parameters: Parameters, solution: Tensor | None, memory: Memory | None) -> None:
        """Remember what minimised the model, not what backtracking chose (Martens 2010, Section 4.6); None forgets."""
        if solution is None:
            pieces = [torch.zeros_like(p, requires_grad=False) for p in parameters.tensors]
        else:
            pieces = [piece.clone() for piece in parameters.split(solution)]
        for p, piece in zip(parameters.tensors, pieces, strict=True):
            self.state[p] = {"cg_solution": piece}
        if memory is not None:  # each parameter its rows, and numbers in its type, as PyTorch casts what it loads
            rows = memory.metric.split([p.numel() for p in parameters.tensors])
            for p, piece in zip(parameters.tensors, rows, strict=True):
                self.state[p].update(metric=piece.to(p.detach()), numbers=memory.numbers.to(p.detach()))

    def _scale_damping(self, factor: float, largest: float = math.inf, beyond: float = math.inf) -> None:
        """Multiply λ by a factor; above the largest curvature it grows by no more than a share of that."""
        for group in self.param_groups:
            lam = float(group["damping"])
            most = max(largest, lam + beyond * largest) if max(largest, beyond) < math.inf else math.inf
            grown = min(factor, most / lam) if factor > 1.0 and lam > 0.0 else factor
            group["damping"] = clipped(grown * lam, self.damping_bounds)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, with its own `lr`, `damping` and `weight_decay` if it names them."""
        if not isinstance(param_group, dict):
            raise TypeError(f"param_group must be a dict, not {type(param_group).__name__}")
        options = self._check_group({**self.defaults, **param_group})
        super().add_param_group(param_group)
        refuse_sharded(self.param_groups[-1]["params"])
        self.param_groups[-1].update(options)
        for p in self.param_groups[-1]["params"]:
            if p.requires_grad:
                self.state[p] = {"cg_solution": torch.zeros_like(p, requires_grad=False)}

    def _check_group(self, group: dict[str, Any]) -> dict[str, float]:
        """Check a group's options, and return them as plain numbers, which every checkpoint can hold."""
        missing = [name for name in OPTIONS if name not in group]
        if missing:
            raise ValueError(
                f"a parameter group must have {', '.join(OPTIONS)}, but one lacks {', '.join(missing)}; "
                "was the state of another kind of optimizer loaded?"
            )
        options = {name: non_negative(name, group[name]) for name in OPTIONS}
        lower, upper = self.damping_bounds
        if options["damping"] != 0.0 and not lower <= options["damping"] <= upper:
            raise ValueError(
                f"damping must be 0 or within damping_bounds = ({lower:g}, {upper:g}), not {group['damping']!r}"
            )
        return options

    def __getstate__(self) -> dict[str, Any]:
        """Everything but PyTorch's hooks, so that copies and pickles keep the configuration."""
        # A learning rate scheduler hangs a `step` on this object that steps this object, whoever calls it.
        own = {key: value for key, value in self.__dict__.items() if not key.startswith("_") and key != "step"}
        return {**own, **super().__getstate__()}
