"""The Hessian-free optimizer of *Late-Phase Second-Order Training* (Tatzel, Hennig, Schneider 2022)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from latephase.checks import boolean, choice, floating_dtype, function, pairs, positive_integer
from latephase.checkups import refuse_accumulation
from latephase.curvature import GGN, Hessian
from latephase.curvature.accumulate import Kind
from latephase.curvature.options import DEFAULT_OPTIONS, Options
from latephase.curvature.returned import Forward, told_outputs, with_outputs
from latephase.damped_optimizer import DampedOptimizer
from latephase.micro_batches import Batches, Cutter, LossFunction, MicroBatch, Model, Pair, Reduction, shared
from latephase.objective import ClosureObjective, Given, Objective, TrialLosses
from latephase.parameters import Parameters
from latephase.parts.backtracking import Backtracking, LastIterate, StepChoice
from latephase.parts.cg import CG
from latephase.parts.choose import chosen, chosen_solver, measures_damping
from latephase.parts.damping import ConstantDamping, DampingRule, LevenbergMarquardt
from latephase.parts.linesearch import Armijo, FullStep, LineSearch
from latephase.parts.solver import DampedProblem, Path, Solver
from latephase.published import PublishedHelpers
from latephase.records import CGStop, Outcome, StepRecord
from latephase.vectors import plus_scaled

Operator = Callable[[Tensor], Tensor]


class HessianFree(PublishedHelpers, DampedOptimizer):
    """Hessian-free optimization with disjoint model and evaluation batches (Tatzel et al. 2022, Algorithm 1).

    Each step minimises a quadratic model of the objective by conjugate gradients and judges the proposal on other
    data. A step is a transaction: an exception, an interrupt or a non-finite number leaves parameters, buffers,
    random number stream and optimizer state as they were.

    Args:
        params: Parameters or parameter groups. A group may have its own `lr`, `damping` and `weight_decay`;
            all three are read afresh at every step.
        curvature_opt: `"ggn"`, the generalised Gauss-Newton matrix (Martens 2010, Section 4.2), or `"hessian"`.
        damping: λ of the first step, ≥ 0. (1.0: Tatzel et al. 2022, Appendix A.1.)
        adapt_damping: Whether the Levenberg–Marquardt rule changes λ (Martens 2010, Section 4.1).
        cg_max_iter: Most CG iterations per step; None means P. (250: Martens & Sutskever 2012, Section 8.7.)
        cg_decay_x0: The share of its last solution that CG starts from. (0.95: Martens & Sutskever 2012, Section 10.)
        use_cg_backtracking: Whether to choose among the CG iterates (Martens 2010, Section 4.6) or take the last.
        lr: Step size, ≥ 0: where the line search begins, or the step size itself without one.
        use_linesearch: Whether to shorten the step until the Armijo condition holds (Martens & Sutskever 2012,
            Section 8.8). Without it a step may raise the loss.
        verbose: Whether to print each step's record.
        weight_decay: wd ≥ 0: adds ½ wd ‖θ‖² to the objective, and so enters loss, gradient *and* curvature.
        martens_conv_crit: Whether CG stops by Martens' relative progress rule (2010, Section 4.4).
        nonpos_curv_option: What CG does at non-positive curvature, see `latephase.parts.CG`.
        damping_bounds: λ stays between these, 0 < lower ≤ upper, so that no long series of failures (or successes)
            takes it where no later step could bring it back. Default: 1e-8 and 1e6; down to 1e-14 for a solver that
            measures λ, and so comes back by itself.
        product_dtype: Type in which matrix products and convolutions work within products with the GGN, such as
            `torch.bfloat16`; None for the network's own. Checked for accuracy at first use.
        compile: Whether `torch.compile` compiles the products with the GGN. Takes long at first use.
        solver: What minimises the quadratic model, an object or its name in `latephase.parts.SOLVERS`, instead of the
            four arguments for conjugate gradients.
        damping_rule: What changes λ, instead of `adapt_damping`.
        backtracking: What chooses among the solver's steps, instead of `use_cg_backtracking`.
        line_search: What chooses the step size, instead of `use_linesearch`.
        outputs: `"auto"`: what a closure returns beside the loss, or else what its losses are seen to be taken of. Or a
            function without arguments that returns them, in any nesting, called when the closure on B has returned:
            for closures that cannot return them, as in `outputs=lambda: model.last_prediction`. For `step` and GGN.
        process_group: The processes that take each step together, on the sum over all of their batches: None for this
            one alone, `"world"`, or a group of `torch.distributed`. All must begin with the same parameters, and
            make the same calls; see docs/scale.md.

    Attributes:
        last_step: The `StepRecord` of the last step; None before the first.

    Raises:
        TypeError: For an argument of the wrong type, naming it and what is allowed.
        ValueError: For one out of range, likewise.

    Example:
        >>> import torch
        >>> model, loss_func = torch.nn.Linear(2, 1, bias=False), torch.nn.MSELoss()
        >>> opt = HessianFree(model.parameters(), damping=0.0)
        >>> x, y = torch.eye(2), torch.tensor([[1.0], [3.0]])
        >>> def forward():
        ...     outputs = model(x)
        ...     return loss_func(outputs, y), outputs
        >>> round(opt.step(forward), 6)  # least squares: the quadratic model is the loss, and one step enough
        0.0
        >>> opt.last_step.outcome.value
        'the step was taken'
    """

    # Makes GradScaler.step call step() and announce itself, so that it can be refused with a clear message.
    _step_supports_amp_scaling = True

    def __init__(
        self,
        params: ParamsT,
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
        damping_bounds: tuple[float, float] | None = None,
        product_dtype: torch.dtype | None = None,
        compile: bool = False,  # noqa: A002 — PyTorch's own word for it
        solver: Solver | str | None = None,
        damping_rule: DampingRule | None = None,
        backtracking: StepChoice | None = None,
        line_search: LineSearch | None = None,
        outputs: Forward | str = "auto",
        process_group: object | None = None,
    ) -> None:
        options = Options(floating_dtype("product_dtype", product_dtype), boolean("compile", compile))
        ggn = choice("curvature_opt", curvature_opt, ["ggn", "hessian"]) == "ggn"
        self.kind = Kind(GGN, options) if ggn else Kind(Hessian, DEFAULT_OPTIONS)
        self.outputs = told_outputs(outputs, ggn=ggn)
        by_flags = CG(cg_max_iter, cg_decay_x0, martens_conv_crit, nonpos_curv_option)
        self.solver = chosen_solver(solver, by_flags)
        adaptive = boolean("adapt_damping", adapt_damping)
        self.damping_rule = chosen("damping_rule", damping_rule, adaptive, LevenbergMarquardt(), ConstantDamping())
        selective = boolean("use_cg_backtracking", use_cg_backtracking)
        self.backtracking = chosen("backtracking", backtracking, selective, Backtracking(), LastIterate())
        searching = boolean("use_linesearch", use_linesearch)
        self.line_search = chosen("line_search", line_search, searching, Armijo(), FullStep())
        bounds = (1e-14 if measures_damping(self.solver) else 1e-8, 1e6) if damping_bounds is None else damping_bounds
        super().__init__(
            params, {"lr": lr, "damping": damping, "weight_decay": weight_decay}, bounds, process_group, verbose
        )

    # ------------------------------------------------------------------ Algorithm 1

    def _update(self, objective: Objective, parameters: Parameters, M: Operator | None) -> StepRecord:
        """One iteration of Algorithm 1."""
        lam, lr = parameters.spread("damping"), parameters.spread("lr")
        # Evaluate gradient and curvature on B:  g ← ∇L_B(θ)
        theta, loss_model, loss_0, g, G = objective.expand()
        record = self._opened(loss_model, loss_0, g)
        if record.outcome is not Outcome.ACCEPTED:
            return record

        # {p_n} ← cg(B, −g), where B(d) = Gd + λd
        minus_g = g.neg_()  # in place: another P numbers would be memory for nothing
        path = self.solver(DampedProblem(
            G, minus_g, lam, self._last_solution(parameters), self._memory(parameters), M, loss_0,
            loss_at=lambda p: objective.loss(theta + p), gradient_at=lambda p: objective.gradient(theta + p),
            loss_model=math.nan if loss_model is None else loss_model,
            wanted=self.backtracking.wanted, asynchronous=parameters.device.type != "cpu",
        ))  # fmt: skip
        record = replace(record, **path.statistics)
        if not path.steps:
            return self._without_direction(record, parameters, path)
        loss_at = TrialLosses(objective, theta, path.steps, path.losses)

        # λ ← lm_heuristic(λ, L_B̄): actual change on B̄ by the last iterate over the model's change from zero
        actual = loss_at(path.last) - loss_0
        factor = path.damping_factor or self.damping_rule(actual, path.predicted)
        judged_apart = loss_model != loss_0 and math.isfinite(actual)  # on other data than B
        noisy = judged_apart and self.kind.operator is GGN
        beyond = getattr(self.damping_rule, "beyond", math.inf) if noisy else math.inf
        self._scale_damping(factor, path.curvature, beyond)
        # p ← cg_backtracking({p_n}, L_B̄)
        n = self.backtracking(loss_at, path.steps)
        # α ← line_search(p, L_B̄), from α = lr
        step = lr * path.steps[n]
        slope = -float(minus_g.dot(step)) if path.slope is None else path.slope
        factor, loss = self.line_search(lambda shrink: loss_at(n, shrink * lr), loss_0, slope)
        if not math.isfinite(loss):
            return replace(record, outcome=Outcome.NON_FINITE_STEP)

        # Apply update  θ ← θ + αp
        if factor > 0.0:
            parameters.write(plus_scaled(theta, factor, step))
        self._remember(parameters, path.steps[path.last] if factor > 0.0 else None, path.memory)
        return replace(
            record,
            outcome=_outcome(factor, unmoved=loss_at.all_equal(loss_0)),
            loss_after=loss,
            next_damping=self._first("damping"),
            reduction_ratio=actual / path.predicted if path.predicted else None,
            cg_iterate=n,
            step_size=factor * self._first("lr"),
            step_norm=factor * float(step.norm()),
        )

    def _without_direction(self, record: StepRecord, parameters: Parameters, path: Path) -> StepRecord:
        """End a step in which the solver got nowhere."""
        if record.cg_stop is CGStop.NON_FINITE:
            return replace(record, outcome=Outcome.NON_FINITE_CURVATURE)
        self._scale_damping(path.damping_factor or self.damping_rule(math.nan, 0.0))
        self._remember(parameters, None, path.memory)
        return replace(record, outcome=Outcome.NO_DIRECTION, next_damping=self._first("damping"))

    # ------------------------------------------------------------------ the two ways to call it

    def step(  # type: ignore[override]
        self,
        closure: Forward | None = None,
        grad: Tensor | None = None,
        mvp: Operator | None = None,
        M_func: Operator | None = None,
        test_deterministic: bool = False,
        *,
        evaluate: Forward | None = None,
        forward: Forward | None = None,
        weight: float = 1.0,
        evaluate_weight: float | None = None,
    ) -> float | None:
        """Take one step. Afterwards `.grad` holds the loss's gradient on B, as loggers like to read it.

        Args:
            closure: Returns `(loss, outputs)` on the model batch B; or is an ordinary closure, for any optimizer: the
                loss is what it calls `backward` on (or returns), and the outputs are what its losses are taken of, see
                docs/curvature.md. `curvature_opt="hessian"` needs no outputs. `backward` and `zero_grad` do nothing
                here. Default: what `set_closure` has set.
            grad: The gradient on B, shape (P,), where you have it already; weight decay is added to it.
            mvp: `v -> Cv`, the curvature on B, where you have it already; weight decay and damping are added.
            M_func: `v -> Mv`, an approximation of the inverse of the *damped* curvature, see `get_preconditioner`.
            test_deterministic: Whether to check first that loss and products are the same when evaluated twice.
            evaluate: Returns the loss, or `(loss, outputs)`, on the evaluation batch B̄, which should be disjoint
                from B (Tatzel et al. 2022, Section 2). Default: what `set_evaluation` has set; else `closure`.
            forward: Another name for `closure`, the one that the authors' code uses.
            weight: With a `process_group`, this rank's share of B, ≥ 0, in any unit (samples, say): losses, gradients
                and products are averaged over the ranks with these weights.
            evaluate_weight: Likewise its share of B̄. Default: `weight`.

        Returns:
            The objective on B̄ after the step; None for a first `step(None)`, which does nothing.

        Raises:
            TypeError: For an argument of another type, or a closure that returns something else.
            ValueError: For one that is out of range, likewise. Nothing has changed then.
            RankError: If another rank failed. Nothing has changed then, either, on any of them.

        Warns:
            StepUndoneWarning: If a number was not finite. Nothing has changed then; see `last_step.outcome`.
        """
        with self._attended(by_hand=grad is not None and mvp is not None) as ranks:
            refuse_accumulation()
            if forward is not None and closure is not None:
                raise TypeError("closure and forward are two names of one argument; give one of them, not both")
            closure = next((one for one in (closure, forward, self._closure) if one is not None), None)
            ranks.same("whether there is a closure", lambda: ([], closure is None))
            if closure is None:
                self._without_closure()
                return None
            evaluate = self._evaluate if evaluate is None else evaluate
            closure = function("closure", closure)
            told = closure if self.outputs is None else with_outputs(closure, self.outputs)
            model = [MicroBatch(told, shared("weight", weight, ranks))]
            evaluation = model
            if evaluate is not None or evaluate_weight is not None:
                share = shared("evaluate_weight", weight if evaluate_weight is None else evaluate_weight, ranks)
                evaluation = [MicroBatch(function("evaluate", closure if evaluate is None else evaluate), share)]
            batches, given = Batches(model, model, evaluation), Given(grad, mvp)
            return self._run(
                lambda parameters, transaction: ClosureObjective(
                    parameters, transaction, batches, self.kind, given, ranks=ranks
                ),
                M_func,
                ranks,
                test_deterministic=test_deterministic,
            )

    @torch.optim.Optimizer.profile_hook_step  # step hooks are called, as PyTorch sees to for `step` by itself
    def acc_step(
        self,
        model: Model,
        loss_func: LossFunction,
        loss_datalist: Sequence[Pair],
        grad_datalist: Sequence[Pair] | None = None,
        mvp_datalist: Sequence[Pair] | None = None,
        M_func: Operator | None = None,
        reduction: Reduction = "mean",
        test_deterministic: bool = False,
        *,
        micro_batches_in_memory: int = 1,
    ) -> float:
        """Take one step with batches that are lists of micro-batches `(inputs, targets)`.

        Args:
            model: Maps inputs to outputs.
            loss_func: Maps `(outputs, targets)` to the loss.
            loss_datalist: The evaluation batch B̄.
            grad_datalist: The batch for the gradient. Default: `loss_datalist`.
            mvp_datalist: The batch for the curvature; it may be smaller. Default: `loss_datalist`.
            M_func: As for `step`.
            reduction: How `loss_func` reduces over samples: `"mean"`, `"sum"`, or a function `targets -> weight` for
                means over something else (tokens that are not padding, say). Check it once with `test_reduction`.
            test_deterministic: As for `step`.
            micro_batches_in_memory: How many micro-batches' graphs may be in memory at once. With as many as the
                curvature's list has, no forward pass is repeated.

        Returns:
            The objective on B̄ after the step.
        """
        with self._attended() as ranks:
            positive_integer("micro_batches_in_memory", micro_batches_in_memory)
            cut = Cutter(model, loss_func, reduction, Parameters(self.param_groups).device, ranks)
            loss_datalist = pairs("loss_datalist", loss_datalist)
            batches = Batches(
                gradient=cut("grad_datalist", loss_datalist if grad_datalist is None else grad_datalist),
                curvature=cut("mvp_datalist", loss_datalist if mvp_datalist is None else mvp_datalist),
                evaluation=cut("loss_datalist", loss_datalist),
            )
            return self._run(
                lambda parameters, transaction: ClosureObjective(
                    parameters, transaction, batches, self.kind, in_memory=micro_batches_in_memory, ranks=ranks
                ),
                M_func,
                ranks,
                test_deterministic=test_deterministic,
            )


def _outcome(factor: float, unmoved: bool) -> Outcome:
    if factor > 0.0:
        return Outcome.ACCEPTED
    return Outcome.EVALUATION_UNMOVED if unmoved else Outcome.NO_DECREASE
