"""Conjugate gradients as a solver: the paper's choice (Tatzel et al. 2022, Algorithm 1)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from latephase.checks import boolean, choice, fraction, positive_integer
from latephase.parts.conjugate_gradients import NonPositiveCurvature, cg
from latephase.parts.solver import DampedProblem, Path


@dataclass(frozen=True)
class CG:
    """Minimise the damped model by conjugate gradients, from the decayed solution of the last step.

    Attributes:
        max_iter: Most iterations; None means P. (250: Martens & Sutskever 2012, Section 8.7.)
        decay_x0: The share of the last solution to start from, in [0, 1]; 0 is a cold start.
            (0.95: Martens & Sutskever 2012, Section 10.)
        martens: Whether to stop by Martens' relative progress rule (2010, Section 4.4), or to run on until
            `max_iter` or until the linear system is solved to rounding.
        nonpositive: What to do at non-positive curvature: `"stop"` and use the iterates so far,
            `"saddle-free"` (absolute value, Dauphin et al. 2014) or `"ignore"`.

    Raises:
        TypeError: For a value of another type, naming it and what is allowed.
        ValueError: For one that is out of range, likewise.

    >>> import torch
    >>> path = CG()(DampedProblem(curvature=lambda v: 3.0 * v, b=torch.tensor([4.0, 8.0]), damping=1.0))
    >>> path.steps[path.last], path.predicted, path.iterations
    (tensor([1., 2.]), -10.0, 1)
    """

    max_iter: int | None = 250
    decay_x0: float = 0.95
    martens: bool = True
    nonpositive: str = "stop"

    def __post_init__(self) -> None:
        # Named as HessianFree's own arguments too, by which most people give them.
        if self.max_iter is not None:
            object.__setattr__(self, "max_iter", positive_integer("cg_max_iter (max_iter of CG)", self.max_iter))
        object.__setattr__(self, "decay_x0", fraction("cg_decay_x0 (decay_x0 of CG)", self.decay_x0))
        boolean("martens_conv_crit (martens of CG)", self.martens)
        allowed = [option.value for option in NonPositiveCurvature]
        choice("nonpos_curv_option (nonpositive of CG)", self.nonpositive, allowed)

    def __call__(self, problem: DampedProblem) -> Path:
        """See `Solver`."""
        path = cg(
            problem.product,
            problem.b,
            x0=self._start(problem.last_solution),
            M=problem.preconditioner,
            max_iter=self.max_iter,
            martens_conv_crit=self.martens,
            nonpos_curv_option=NonPositiveCurvature(self.nonpositive),
            keep=problem.wanted(self.max_iter or problem.b.numel()),
            check_every=5 if problem.asynchronous else 1,
        )
        warm_started = path.values[0] < 0.0
        # The zero iterate of a cold start is no step.
        steps = path.iterates if warm_started else path.iterates.without(0)
        return Path(
            steps, path.values[-1], path.last, path.stop, warm_started, method="conjugate gradients",
            curvature=path.curvature - _least(problem.damping),
        )  # fmt: skip

    def _start(self, last_solution: Tensor | None) -> Tensor | None:
        if last_solution is None:
            return None
        x0 = last_solution.mul_(self.decay_x0)  # in place: another P numbers would be memory for nothing
        return x0 if bool(x0.any()) else None


def _least(damping: float | Tensor) -> float:
    return damping if isinstance(damping, float) else float(damping.min())
