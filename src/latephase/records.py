"""What a step reports: its record, and the reasons why things ended."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from enum import Enum


class CGStop(str, Enum):
    """Why conjugate gradients ended; the value is a sentence for people.

    >>> CGStop.SOLVED.value
    'the linear system is solved to rounding'
    """

    RELATIVE_PROGRESS = "relative progress per iteration fell below Martens' threshold"
    MAX_ITERATIONS = "the maximum number of iterations was reached"
    SOLVED = "the linear system is solved to rounding"
    NON_POSITIVE_CURVATURE = "a direction of non-positive curvature was met"
    NON_FINITE = "a product or an iterate was not finite"


class Outcome(str, Enum):
    """What became of a step; the value is a sentence for people.

    >>> Outcome.ZERO_GRADIENT.value
    'the gradient is zero; the parameters stay'
    >>> Outcome.ZERO_GRADIENT.undone, Outcome.NON_FINITE_LOSS.undone
    (False, True)
    """

    ACCEPTED = "the step was taken"
    NO_DECREASE = "no step size lowered the loss on the evaluation batch enough; the parameters stay"
    EVALUATION_UNMOVED = (
        "the loss on the evaluation batch is the same at every trial point, to the bit: evaluate() does not depend on "
        "the parameters, or steps have become too small to matter; the parameters stay"
    )
    NO_DIRECTION = (
        "conjugate gradients found no direction of descent; the parameters stay, and damping grows if it is adapted"
    )
    ZERO_GRADIENT = "the gradient is zero; the parameters stay"
    NO_PARAMETERS = "no parameter requires a gradient; nothing to do"
    NON_FINITE_LOSS = "the loss on the model batch is not finite; nothing was changed"
    NON_FINITE_GRADIENT = "the gradient on the model batch is not finite; nothing was changed"
    NON_FINITE_EVALUATION = "the loss on the evaluation batch is not finite; nothing was changed"
    NON_FINITE_CURVATURE = "a curvature product is not finite; nothing was changed"
    NON_FINITE_STEP = "the loss after the step would not be finite; nothing was changed"

    @property
    def undone(self) -> bool:
        """Whether the step left parameters, buffers, random number stream and state as they were."""
        return self.name.startswith("NON_FINITE") or self is Outcome.NO_PARAMETERS


class StepUndoneWarning(UserWarning):
    """A step met a number that is not finite, and left everything as it was.

    To end a training there, make it an error:

    >>> import warnings, torch, latephase
    >>> warnings.simplefilter("error", latephase.StepUndoneWarning)
    >>> theta = torch.nn.Parameter(torch.tensor([-1.0]))
    >>> latephase.HessianFree([theta], curvature_opt="hessian").step(lambda: theta.log().sum())
    Traceback (most recent call last):
    latephase.records.StepUndoneWarning: ...the loss on the model batch is not finite; nothing was changed...
    """


@dataclass(frozen=True)
class Counts:
    """Work done in a step, in evaluations of the closures (of micro-batches, in `acc_step`).

    Attributes:
        losses: Forward passes for a loss alone.
        gradients: Forward and backward passes, on the model batch.
        linearisations: Forward passes made for curvature only (none where the gradient's graph serves).
        products: Products with the curvature operator (each over all of the curvature batch).

    >>> Counts(losses=3, gradients=1, products=12)
    Counts(losses=3, gradients=1, linearisations=0, products=12)
    """

    losses: int = 0
    gradients: int = 0
    linearisations: int = 0
    products: int = 0


@dataclass(frozen=True)
class StepRecord:
    """One step of the optimizer, in numbers. All losses include the weight decay.

    Attributes:
        outcome: What became of the step.
        loss_model: Objective on the model batch B before the step; None where nothing needed it.
        loss_before: Objective on the evaluation batch B̄ before the step.
        loss_after: Objective on B̄ after the step; equal to `loss_before` where the parameters stayed.
        damping: λ used in this step (of the first parameter group).
        next_damping: λ for the next step.
        reduction_ratio: ρ, actual over predicted change; None where there was no step to judge.
        solver: How the step was found, and why so.
        cg_iterations: Iterations of conjugate gradients, or vectors of a Krylov space.
        cg_stop: Why they ended; None where they did not run.
        cg_iterate: Number of the iterate chosen by CG-backtracking.
        warm_started: Whether conjugate gradients started from the last solution rather than from zero.
        step_size: α, of the first parameter group; 0 where the parameters stayed.
        grad_norm: Euclidean norm of the gradient on B.
        step_norm: Euclidean norm of the change of θ.
        counts: Evaluations and products.
        matrices: What products of dense matrices and their factorisation took beside, about, in gradients on B.
        seconds: Wall-clock time of the step.

    >>> judged = Outcome.ACCEPTED, None, 2.5, 1.25, 1.0, 2 / 3, 0.9
    >>> print(StepRecord(*judged, "conjugate gradients", 4, CGStop.SOLVED, 3, False, 1.0))
    loss 2.5 -> 1.25: the step was taken
      damping 1 -> 0.667 (reduction ratio 0.9), step size 1, step norm 0
      conjugate gradients: 4 iterations, iterate 3 chosen; the linear system is solved to rounding
      0 gradients, 0 curvature products, 0 losses in 0.00 s
    """

    outcome: Outcome
    loss_model: float | None
    loss_before: float
    loss_after: float
    damping: float
    next_damping: float
    reduction_ratio: float | None = None
    solver: str = ""
    cg_iterations: int = 0
    cg_stop: CGStop | None = None
    cg_iterate: int | None = None
    warm_started: bool = False
    step_size: float = 0.0
    grad_norm: float | None = None
    step_norm: float = 0.0
    counts: Counts = Counts()
    matrices: float = 0.0
    seconds: float = 0.0

    def as_dict(self, prefix: str = "") -> dict[str, float | int | str]:
        """Return the record as numbers and texts by name, for loggers; what there was not in this step is left out.

        Args:
            prefix: Put before each name.

        >>> record = StepRecord(Outcome.ACCEPTED, None, 2.5, 1.25, 1.0, 0.5, counts=Counts(losses=3))
        >>> entries = record.as_dict("hf/")
        >>> entries["hf/loss_after"], entries["hf/outcome"], entries["hf/losses"], "hf/loss_model" in entries
        (1.25, 'ACCEPTED', 3, False)
        """
        own = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "counts"}
        entries = {**own, **asdict(self.counts)}
        plain = {name: value.name if isinstance(value, Enum) else value for name, value in entries.items()}
        return {prefix + name: value for name, value in plain.items() if value is not None}

    def __str__(self) -> str:
        model = "" if self.loss_model is None else f" (model batch {self.loss_model:.6g})"
        ratio = "-" if self.reduction_ratio is None else f"{self.reduction_ratio:.3g}"
        stop = "ended early" if self.cg_stop is None else self.cg_stop.value
        solver = self.solver or "no solver"
        return (
            f"loss {self.loss_before:.6g} -> {self.loss_after:.6g}{model}: {self.outcome.value}\n"
            f"  damping {self.damping:.3g} -> {self.next_damping:.3g} (reduction ratio {ratio}), "
            f"step size {self.step_size:.3g}, step norm {self.step_norm:.3g}\n"
            f"  {solver}: {self.cg_iterations} iterations, iterate {self.cg_iterate} chosen; {stop}\n"
            f"  {self.counts.gradients} gradients, {self.counts.products} curvature products, "
            f"{self.counts.losses} losses in {self.seconds:.2f} s"
        )
