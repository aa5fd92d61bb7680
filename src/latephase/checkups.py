"""What is checked around a step: circumstances that would spoil it in silence, and closures that do not repeat."""

from __future__ import annotations

import inspect
import sys
import warnings

import torch
from torch import Tensor
from torch.nn.utils import parametrize

from latephase.objective import Objective
from latephase.parameters import Parameters

AROUND_A_STEP = (
    "latephase.optimizer", "latephase.damped_optimizer", "latephase.checkups", "latephase.transaction", "torch.optim.",
    "contextlib",
)  # fmt: skip


def refuse_grad_scaler(optimizer: torch.optim.Optimizer) -> None:
    """Raise RuntimeError if a GradScaler calls the step."""
    if hasattr(optimizer, "found_inf"):
        for mark in {"found_inf", "grad_scale"} & vars(optimizer).keys():
            delattr(optimizer, mark)
        raise RuntimeError(
            "HessianFree needs no GradScaler, and scaled losses would spoil its damping and line search; "
            "call opt.step(forward) with the unscaled loss (bfloat16 autocast works without a scaler)"
        )


def refuse_accumulation() -> None:
    """Raise RuntimeError if Accelerate calls the step once for several batches, of which it passes the last one on."""
    if "accelerate.optimizer" not in sys.modules:
        return
    frame = inspect.currentframe()
    while frame is not None and frame.f_globals.get("__name__") != "accelerate.optimizer":
        frame = frame.f_back
    state = None if frame is None else getattr(frame.f_locals.get("self"), "gradient_state", None)
    if state is not None and state.num_steps > 1:
        raise RuntimeError(
            f"gradient_accumulation_steps={state.num_steps} adds up gradients in .grad, which a step does not use, so "
            "that only the last batch would count; take the batches of a step together: "
            "optimizer.optimizer.acc_step(model, loss_func, batches)"
        )


def refuse_cached_parametrizations() -> None:
    """Raise RuntimeError within `parametrize.cached()`, where trial points would see the weights of another."""
    if parametrize._cache_enabled:
        raise RuntimeError(
            "a step within torch.nn.utils.parametrize.cached() would judge every trial point by the cached weights of "
            "the first; use cached() inside the closure"
        )


def refuse_missing_closure(*, used: bool) -> None:
    """Raise TypeError for a step without a closure by an optimizer that is `used`, in whatever sense."""
    if used:
        raise TypeError(
            "step needs a closure that computes the loss, as it is evaluated several times: opt.step(closure), "
            "where closure() returns (loss, outputs); gradients in .grad are not used"
        )


def check_deterministic(parameters: Parameters, first: Objective, second: Objective) -> None:
    """Warn if two evaluations of the same problem differ."""
    differing = differing_parts(fingerprint(parameters, first), fingerprint(parameters, second))
    if differing:
        warn_caller(
            f"evaluated twice at the same point, these differ: {', '.join(differing)}. The quadratic model changes "
            "while it is minimised. A closure must use the same data and the same randomness each time it is called."
        )


def warn_caller(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the line that called the step, past this package's own modules and what PyTorch wraps around `step`."""
    level, frame = 1, inspect.currentframe()
    while frame is not None and frame.f_globals.get("__name__", "").startswith(AROUND_A_STEP):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)


def fingerprint(parameters: Parameters, objective: Objective) -> dict[str, Tensor]:
    """Loss, gradient, and a product with a fixed random vector."""
    _, loss_model, loss, gradient, curvature = objective.expand()
    v = torch.randn(parameters.numel, generator=torch.Generator().manual_seed(0), device="cpu").to(gradient)
    return {
        "the loss": torch.tensor([loss if loss_model is None else loss_model, loss], dtype=torch.float64, device="cpu"),
        "the gradient": gradient,
        "a curvature product": curvature(v),
    }


def differing_parts(first: dict[str, Tensor], second: dict[str, Tensor]) -> list[str]:
    """Names of the quantities that differ by more than the square root of rounding, in relative norm."""
    return [
        name
        for name, a in first.items()
        if not (a - second[name]).norm() <= torch.finfo(second["the gradient"].dtype).eps ** 0.5 * a.norm()
    ]
