"""The Hessian-free optimizer of *Late-Phase Second-Order Training* (Tatzel, Hennig, Schneider 2022)."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from latephase.checks import (
    boolean,
    choice,
    floating_dtype,
    fraction,
    function,
    non_negative,
    pairs,
    positive_bounds,
    positive_fraction,
    positive_integer,
    vector_map,
)
from latephase.checkups import (
    check_deterministic,
    differing_parts,
    fingerprint,
    refuse_cached_parametrizations,
    refuse_grad_scaler,
    refuse_several_processes,
    warn_caller,
)
from latephase.curvature import GGN, Hessian
from latephase.curvature.fisher import diagonal_empirical_fisher
from latephase.curvature.options import DEFAULT_OPTIONS, Options
from latephase.objective import MicroBatch, Objective, TrialLosses, micro_batches
from latephase.parameters import Parameters, plus_scaled
from latephase.parts.backtracking import backtracking_grid, cg_backtracking, last_iterate
from latephase.parts.cg import NonPositiveCurvature, cg
from latephase.parts.damping import clipped, constant_damping, levenberg_marquardt
from latephase.parts.linesearch import armijo, full_step
from latephase.parts.preconditioners import diagonal_preconditioner
from latephase.records import CGStop, Counts, Outcome, StepRecord, StepUndoneWarning
from latephase.transaction import Transaction, settled

Operator = Callable[[Tensor], Tensor]


class _Undone(Exception):  # noqa: N818 — an ending, not an error
    """Ends a step that must leave nothing behind; carries its record."""

    def __init__(self, record: StepRecord) -> None:
        self.record = record


class HessianFree(torch.optim.Optimizer):
    """Hessian-free optimization with disjoint model and evaluation batches (Tatzel et al. 2022, Algorithm 1).

    Each step minimises a quadratic model of the objective by conjugate gradients and judges the proposal on other
    data. A step is a transaction: an exception, an interrupt or a non-finite number leaves parameters, buffers,
    random number stream and optimizer state as they were.

    Args:
        params: Parameters or parameter groups. A group may have its own ``lr``, ``damping`` and ``weight_decay``;
            all three are read afresh at every step.
        curvature_opt: ``"ggn"``, the positive semi-definite generalised Gauss-Newton matrix (Martens 2010,
            Section 4.2), or ``"hessian"``.
        damping: λ of the first step, ≥ 0. (1.0: Tatzel et al. 2022, Appendix A.1.)
        adapt_damping: Whether the Levenberg–Marquardt rule changes λ (Martens 2010, Section 4.1).
        cg_max_iter: Most CG iterations per step; None means P. (250: Martens & Sutskever 2012, Section 8.7.)
        cg_decay_x0: CG starts from this share of the last CG solution, in [0, 1]; 0 is a cold start.
            (0.95: Martens & Sutskever 2012, Section 10.)
        use_cg_backtracking: Whether to choose among the CG iterates (Martens 2010, Section 4.6) or take the last.
        lr: Step size, ≥ 0: where the line search begins, or the step size itself without one.
        use_linesearch: Whether to shorten the step until the Armijo condition holds (Martens & Sutskever 2012,
            Section 8.8). Without it a step may raise the loss.
        verbose: Whether to print each step's record.
        weight_decay: wd ≥ 0: adds ½ wd ‖θ‖² to the objective, and so enters loss, gradient *and* curvature.
        martens_conv_crit: Whether CG stops by Martens' relative progress rule (2010, Section 4.4), or runs on until
            ``cg_max_iter`` or until the linear system is solved to rounding.
        nonpos_curv_option: What CG does at non-positive curvature: ``"stop"`` and use the iterates so far,
            ``"saddle-free"`` (absolute value, Dauphin et al. 2014) or ``"ignore"``.
        damping_bounds: λ stays between these, 0 < lower ≤ upper. They only keep a long series of failures (or
            successes) from taking λ where no later step could bring it back.
        product_dtype: Type in which matrix products and convolutions work within products with the GGN, such as
            ``torch.bfloat16``; None for the network's own. Checked for accuracy at first use.
        compile: Whether ``torch.compile`` compiles the products with the GGN. Takes long at first use.

    Attributes:
        last_step: The :class:`~latephase.records.StepRecord` of the last step; None before the first.

    Raises:
        ValueError, TypeError: For an argument of the wrong type or range, naming it and what is allowed.
    """

    # Makes GradScaler.step call step() and announce itself, so that it can be refused with a clear message.
    _step_supports_amp_scaling = True

    def __init__(
        self,
        params: Any,
        curvature_opt: str = "ggn",
        damping: float = 1.0,
        adapt_damping: bool = True,
        cg_max_iter: int | None = 250,
        cg_decay_x0: float = 0.95,
        use_cg_backtracking: bool = True,
        lr: float = 1.0,
        use_linesearch: bool = True,
        verbose: bool = False,
        *,
        weight_decay: float = 0.0,
        martens_conv_crit: bool = True,
        nonpos_curv_option: str = "stop",
        damping_bounds: tuple[float, float] = (1e-8, 1e6),
        product_dtype: torch.dtype | None = None,
        compile: bool = False,  # noqa: A002 — PyTorch's own word for it
    ) -> None:
        self.curvature_opt = choice("curvature_opt", curvature_opt, ["ggn", "hessian"])
        self.cg_max_iter = None if cg_max_iter is None else positive_integer("cg_max_iter", cg_max_iter)
        self.cg_decay_x0 = fraction("cg_decay_x0", cg_decay_x0)
        self.martens_conv_crit = boolean("martens_conv_crit", martens_conv_crit)
        self.nonpos_curv_option = NonPositiveCurvature(
            choice("nonpos_curv_option", nonpos_curv_option, [option.value for option in NonPositiveCurvature])
        )
        self.damping_bounds = positive_bounds("damping_bounds", damping_bounds)
        self.product_options = Options(floating_dtype("product_dtype", product_dtype), boolean("compile", compile))
        self.damping_rule = levenberg_marquardt if boolean("adapt_damping", adapt_damping) else constant_damping
        self.choose_iterate = cg_backtracking if boolean("use_cg_backtracking", use_cg_backtracking) else last_iterate
        self.line_search = armijo if boolean("use_linesearch", use_linesearch) else full_step
        self.verbose = boolean("verbose", verbose)
        self.last_step: StepRecord | None = None
        super().__init__(params, {"lr": lr, "damping": damping, "weight_decay": weight_decay})

    # ------------------------------------------------------------------ Algorithm 1

    def _update(self, objective: Objective, M: Operator | None) -> StepRecord:
        """One iteration of Algorithm 1."""
        parameters = objective.parameters
        lam, lr = parameters.spread("damping"), parameters.spread("lr")
        theta = objective.theta

        # Evaluate gradient and curvature on B:  g ← ∇L_B(θ)
        loss_model, g = objective.loss_and_grad()
        G = objective.curvature()
        loss_0 = objective.loss_here()
        record = self._begin(loss_model, loss_0, g, objective.counts)
        if record.outcome is Outcome.ZERO_GRADIENT:
            return record

        # Define B(d) = Gd + λd.  {p_n} ← cg(B, −g), from the decayed last solution
        minus_g = g.neg_()  # in place: another P numbers would be memory for nothing
        path = cg(
            lambda d: plus_scaled(G(d), lam, d),
            minus_g,
            x0=self._warm_start(parameters),
            M=M,
            max_iter=self.cg_max_iter,
            martens_conv_crit=self.martens_conv_crit,
            nonpos_curv_option=self.nonpos_curv_option,
            keep=backtracking_grid(self.cg_max_iter or parameters.numel),
            check_every=1 if parameters.device.type == "cpu" else 5,
        )
        warm_started = path.values[0] < 0.0
        candidates = [n for n in path.iterates if n > 0 or warm_started]
        record = dataclasses.replace(
            record,
            cg_iterations=path.last,
            cg_stop=path.stop,
            warm_started=warm_started,
            counts=objective.counts,
        )
        if not candidates:
            return self._without_direction(record, parameters)
        loss_at = TrialLosses(objective, path.iterates)

        # λ ← lm_heuristic(λ, L_B̄): actual change on B̄ by the last iterate over the model's change from zero
        actual = loss_at(path.last) - loss_0
        lam_factor = self.damping_rule(actual, path.values[-1])
        # p ← cg_backtracking({p_n}, L_B̄)
        n = self.choose_iterate(loss_at, candidates)
        # α ← line_search(p, L_B̄), from α = lr
        step = lr * path.iterates[n]
        factor, loss = self.line_search(lambda shrink: loss_at(n, shrink * lr), loss_0, -float(minus_g.dot(step)))
        if not math.isfinite(loss):
            raise _Undone(dataclasses.replace(record, outcome=Outcome.NON_FINITE_STEP, counts=objective.counts))

        # Apply update  θ ← θ + αp
        if factor > 0.0:
            parameters.write(plus_scaled(theta, factor, step))
        self._scale_damping(lam_factor)
        self._set_warm_start(parameters, path.iterates[path.last] if factor > 0.0 else None)
        return dataclasses.replace(
            record,
            outcome=_outcome(factor, unmoved=loss_at.all_equal(loss_0)),
            loss_after=loss,
            next_damping=self.param_groups[0]["damping"],
            reduction_ratio=actual / path.values[-1] if path.values[-1] else None,
            cg_iterate=n,
            step_size=factor * float(self.param_groups[0]["lr"]),
            step_norm=factor * float(step.norm()),
            counts=objective.counts,
        )

    # ------------------------------------------------------------------ the two ways to call it

    def step(  # type: ignore[override]
        self,
        forward: Callable[[], Any] | None = None,
        grad: Tensor | None = None,
        mvp: Operator | None = None,
        M_func: Operator | None = None,
        test_deterministic: bool = False,
        *,
        evaluate: Callable[[], Any] | None = None,
        closure: Callable[[], Any] | None = None,
    ) -> float | None:
        """Take one step.

        Args:
            forward: Returns ``(loss, outputs)`` on the model batch B; the loss alone is enough for
                ``curvature_opt="hessian"``. It may call ``backward`` and ``zero_grad``, which do nothing here.
            grad: The gradient on B, shape (P,), where you have it already; weight decay is added to it.
            mvp: ``v -> Cv``, the curvature on B, where you have it already; weight decay and damping are added.
            M_func: ``v -> Mv``, a preconditioner: an approximation of the inverse of the *damped* curvature, see
                :meth:`get_preconditioner`.
            test_deterministic: Whether to check first that loss and products are the same when evaluated twice.
            evaluate: Returns the loss, or ``(loss, outputs)``, on the evaluation batch B̄, which should be disjoint
                from B (Tatzel et al. 2022, Section 2). Default: ``forward``.
            closure: Another name for ``forward``, the one that PyTorch's own tools use.

        Returns:
            The objective on B̄ after the step; None for a first ``step(None)``, which does nothing.

        Raises:
            TypeError, ValueError: For bad arguments, or closures that return something else. Nothing has changed then.

        Warns:
            StepUndoneWarning: If a number was not finite. Nothing has changed then; see ``last_step.outcome``.
        """
        refuse_grad_scaler(self)
        if forward is not None and closure is not None:
            raise TypeError("forward and closure are two names of one argument; give one of them, not both")
        forward = closure if forward is None else forward
        if forward is None:
            self._without_closure()
            return None
        if grad is None or mvp is None:
            refuse_several_processes()
        model_batch = [MicroBatch(function("forward", forward))]
        return self._run(
            M_func,
            test_deterministic,
            gradient=model_batch,
            curvature=model_batch,
            evaluation=model_batch if evaluate is None else [MicroBatch(function("evaluate", evaluate))],
            grad=grad,
            mvp=mvp,
        )

    def acc_step(
        self,
        model: Callable[[Any], Any],
        loss_func: Callable[[Any, Any], Tensor],
        loss_datalist: Sequence[tuple[Any, Any]],
        grad_datalist: Sequence[tuple[Any, Any]] | None = None,
        mvp_datalist: Sequence[tuple[Any, Any]] | None = None,
        M_func: Operator | None = None,
        reduction: str | Callable[[Any], float] = "mean",
        test_deterministic: bool = False,
        *,
        micro_batches_in_memory: int = 1,
    ) -> float:
        """Take one step with batches that are lists of micro-batches ``(inputs, targets)``.

        Args:
            model: Maps inputs to outputs.
            loss_func: Maps ``(outputs, targets)`` to the loss.
            loss_datalist: The evaluation batch B̄.
            grad_datalist: The batch for the gradient. Default: ``loss_datalist``.
            mvp_datalist: The batch for the curvature; it may be smaller than the gradient's.
                Default: ``loss_datalist``.
            M_func: As for :meth:`step`.
            reduction: How ``loss_func`` reduces over samples: ``"mean"``, ``"sum"``, or a function
                ``targets -> weight`` for means over something else than ``targets.shape[0]`` samples (tokens that
                are not padding, say). Check it once with :meth:`test_reduction`.
            test_deterministic: As for :meth:`step`.
            micro_batches_in_memory: How many micro-batches' graphs may be in memory at once. With as many as the
                curvature's list has, no forward pass is repeated.

        Returns:
            The objective on B̄ after the step.
        """
        refuse_grad_scaler(self)
        refuse_several_processes()
        function("model", model)
        function("loss_func", loss_func)
        positive_integer("micro_batches_in_memory", micro_batches_in_memory)
        device = Parameters(self.param_groups).device
        closures: dict[int, Callable[[], Any]] = {}
        loss_datalist = pairs("loss_datalist", loss_datalist)

        def batch(name: str, datalist: Sequence[tuple[Any, Any]] | None) -> list[MicroBatch]:
            datalist = loss_datalist if datalist is None else pairs(name, datalist)
            return micro_batches(model, loss_func, datalist, reduction, device, closures)

        return self._run(
            M_func,
            test_deterministic,
            gradient=batch("grad_datalist", grad_datalist),
            curvature=batch("mvp_datalist", mvp_datalist),
            evaluation=batch("loss_datalist", loss_datalist),
            micro_batches_in_memory=micro_batches_in_memory,
        )

    # ------------------------------------------------------------------ around a step

    def _without_closure(self) -> None:
        """Do nothing where a checkpointing tool calls a fresh optimizer to make it create its state; else refuse."""
        grads = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        if self.last_step is not None or any(bool(g.any()) for g in grads):
            raise TypeError(
                "step needs a closure that computes the loss, as it is evaluated several times: opt.step(closure), "
                "where closure() returns (loss, outputs); gradients in .grad are not used"
            )

    def _run(self, M: Operator | None, test_deterministic: bool, **problem: Any) -> float:
        """Run :meth:`_update` on a problem, all or nothing, and keep its record."""
        start = time.perf_counter()
        boolean("test_deterministic", test_deterministic)
        refuse_cached_parametrizations()
        for group in self.param_groups:
            self._check_group(group)
        if M is not None:
            M = vector_map("M_func", M)
        parameters = Parameters(self.param_groups)

        def attempt(transaction: Transaction) -> StepRecord:
            theta = parameters.read()
            objective = self._objective(parameters, theta, transaction, **problem)
            if not parameters.tensors:
                raise _Undone(_nothing_to_do(objective, self))
            if test_deterministic:
                again = [self._objective(parameters, theta, transaction, **problem) for _ in range(2)]
                check_deterministic(*again)
            record = self._update(objective, M)
            transaction.commit()
            return record

        try:
            with torch.enable_grad():
                record = settled(parameters, attempt, self._undo(parameters))
        except _Undone as undone:
            record = undone.record
        self._opt_called = True  # What a learning rate scheduler looks for; it only sees step() by itself.
        self.last_step = dataclasses.replace(record, seconds=time.perf_counter() - start)
        if self.verbose:
            print(self.last_step)  # noqa: T201
        if record.outcome.undone:
            warn_caller(record.outcome.value, StepUndoneWarning)
        return record.loss_after

    def _undo(self, parameters: Parameters) -> Callable[[], None]:
        """A function that puts the optimizer's own state back to what it is now."""
        state = {p: dict(self.state[p]) for p in parameters.tensors if p in self.state}
        damping = [group["damping"] for group in self.param_groups]

        def undo() -> None:
            for p in parameters.tensors:
                self.state.pop(p, None)
            self.state.update(state)
            for group, value in zip(self.param_groups, damping, strict=True):
                group["damping"] = value

        return undo

    def _objective(self, parameters: Parameters, theta: Tensor, transaction: Transaction, **problem: Any) -> Objective:
        return Objective(
            parameters,
            theta,
            transaction,
            operator=GGN if self.curvature_opt == "ggn" else Hessian,
            product_options=self.product_options if self.curvature_opt == "ggn" else DEFAULT_OPTIONS,
            weight_decay=parameters.spread("weight_decay"),
            **problem,
        )

    def _begin(self, loss_model: float | None, loss_0: float, g: Tensor, counts: Counts) -> StepRecord:
        """Open the record, and end a step here that has a number which is not finite or nowhere to go."""
        damping = float(self.param_groups[0]["damping"])
        record = StepRecord(
            Outcome.ACCEPTED, loss_model, loss_0, loss_0, damping, damping, grad_norm=float(g.norm()), counts=counts
        )
        if loss_model is not None and not math.isfinite(loss_model):
            raise _Undone(dataclasses.replace(record, outcome=Outcome.NON_FINITE_LOSS))
        if not bool(g.isfinite().all()):
            raise _Undone(dataclasses.replace(record, outcome=Outcome.NON_FINITE_GRADIENT))
        if not math.isfinite(loss_0):
            raise _Undone(dataclasses.replace(record, outcome=Outcome.NON_FINITE_EVALUATION))
        return dataclasses.replace(record, outcome=Outcome.ZERO_GRADIENT) if not bool(g.any()) else record

    def _without_direction(self, record: StepRecord, parameters: Parameters) -> StepRecord:
        """End a step in which conjugate gradients got nowhere."""
        if record.cg_stop is CGStop.NON_FINITE:
            raise _Undone(dataclasses.replace(record, outcome=Outcome.NON_FINITE_CURVATURE))
        self._scale_damping(self.damping_rule(math.nan, 0.0))
        self._set_warm_start(parameters, None)
        return dataclasses.replace(record, outcome=Outcome.NO_DIRECTION, next_damping=self.param_groups[0]["damping"])

    # ------------------------------------------------------------------ state

    def _warm_start(self, parameters: Parameters) -> Tensor | None:
        """The decayed CG solution of the last step (Martens & Sutskever 2012, Section 10), or None."""
        x0 = parameters.join([self.state[p].get("cg_solution") for p in parameters.tensors]).mul_(self.cg_decay_x0)
        return x0 if bool(x0.any()) else None

    def _set_warm_start(self, parameters: Parameters, solution: Tensor | None) -> None:
        """Remember the CG solution, not the backtracked one (Martens 2010, Section 4.6); None forgets it."""
        solution = torch.zeros_like(parameters.read()) if solution is None else solution
        for p, piece in zip(parameters.tensors, parameters.split(solution), strict=True):
            self.state[p] = {"cg_solution": piece.clone()}

    def _scale_damping(self, factor: float) -> None:
        for group in self.param_groups:
            group["damping"] = clipped(factor * float(group["damping"]), self.damping_bounds)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, with its own ``lr``, ``damping`` and ``weight_decay`` if it names them."""
        if not isinstance(param_group, dict):
            raise TypeError(f"param_group must be a dict, not {type(param_group).__name__}")
        options = self._check_group({**self.defaults, **param_group})
        super().add_param_group(param_group)
        self.param_groups[-1].update(options)
        for p in self.param_groups[-1]["params"]:
            if p.requires_grad:
                self.state[p] = {"cg_solution": torch.zeros_like(p, requires_grad=False)}

    def _check_group(self, group: dict[str, Any]) -> dict[str, float]:
        """Check a group's options, and return them as plain numbers, which every checkpoint can hold."""
        names = ("lr", "damping", "weight_decay")
        missing = [name for name in names if name not in group]
        if missing:
            raise ValueError(
                f"a parameter group must have {', '.join(names)}, but one lacks {', '.join(missing)}; "
                "was the state of another kind of optimizer loaded?"
            )
        options = {name: non_negative(name, group[name]) for name in names}
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

    # ------------------------------------------------------------------ helpers the paper's code offers

    def get_preconditioner(
        self,
        model: torch.nn.Module,
        loss_func: Callable[[Any, Any], Tensor],
        inputs: Tensor,
        targets: Tensor,
        reduction: str,
        exponent: float | None = None,
    ) -> Operator:
        """Return Martens' preconditioner for the present λ, to be given to a step as ``M_func``.

        ``(diag(F) + wd + λ)^(-exponent)`` with F the empirical Fisher matrix (Martens 2010, Section 4.7).

        Args:
            model: Maps inputs to outputs; BatchNorm layers must be in eval mode.
            loss_func: Maps ``(outputs, targets)`` to the loss.
            inputs: N samples.
            targets: N targets.
            reduction: How ``loss_func`` reduces over samples, ``"mean"`` or ``"sum"``.
            exponent: > 0 and at most 1. (0.75: Martens 2010, Section 4.7.)
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
        transaction = Transaction(parameters)
        with transaction.evaluation():
            diagonal = diagonal_empirical_fisher(model, loss_func, inputs, targets, parameters, reduction=reduction)
        diagonal += parameters.spread("weight_decay")
        return diagonal_preconditioner(diagonal, parameters.spread("damping"), exponent)

    def test_reduction(
        self,
        model: Callable[[Any], Any],
        loss_func: Callable[[Any, Any], Tensor],
        datalist: Sequence[tuple[Tensor, Tensor]],
        reduction: str | Callable[[Any], float],
    ) -> None:
        """Check that micro-batches add up: loss, gradient and a curvature product, against those on their union.

        Args:
            model: As for :meth:`acc_step`.
            loss_func: Likewise.
            datalist: At least two micro-batches, better of different sizes.
            reduction: As for :meth:`acc_step`.

        Raises:
            RuntimeError: If they do not, naming what differs. BatchNorm in training mode and dropout do that too.
        """
        function("model", model)
        function("loss_func", loss_func)
        datalist = pairs("datalist", datalist)
        if len(datalist) < 2:
            raise ValueError(f"datalist must have at least two micro-batches to compare, not {len(datalist)}")
        parameters = Parameters(self.param_groups)
        transaction = Transaction(parameters)
        union = [(torch.cat([x for x, _ in datalist]), torch.cat([y for _, y in datalist]))]
        values = []
        for batch in (datalist, union):
            closures: dict[int, Callable[[], Any]] = {}
            made = micro_batches(model, loss_func, batch, reduction, parameters.device, closures)
            problem = {"gradient": made, "curvature": made, "evaluation": made}
            values.append(fingerprint(self._objective(parameters, parameters.read(), transaction, **problem)))
        transaction.rollback()
        differing = differing_parts(*values)
        if differing:
            raise RuntimeError(
                f"with reduction={reduction!r} the micro-batches do not add up to their union in: "
                f"{', '.join(differing)}; is it the reduction that loss_func uses, and is the model in eval mode?"
            )


def _outcome(factor: float, unmoved: bool) -> Outcome:
    if factor > 0.0:
        return Outcome.ACCEPTED
    return Outcome.EVALUATION_UNMOVED if unmoved else Outcome.NO_DECREASE


def _nothing_to_do(objective: Objective, optimizer: HessianFree) -> StepRecord:
    loss = objective.loss(objective.theta)
    damping = float(optimizer.param_groups[0]["damping"])
    return StepRecord(Outcome.NO_PARAMETERS, None, loss, loss, damping, damping, counts=objective.counts)
