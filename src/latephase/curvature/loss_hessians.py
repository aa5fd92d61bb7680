"""Hessians of PyTorch's common losses in their inputs, in closed form: products ``v -> Hv`` in output space."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

Product = Callable[[Tensor], Tensor]


class LossCall(NamedTuple):
    """A call of one of PyTorch's loss functions, and its result."""

    function: Callable[..., object]
    args: tuple[object, ...]
    kwargs: dict[str, object]
    result: Tensor


def closed_form(call: LossCall | None, outputs: Tensor) -> Product | None:
    """Return ``v -> Hv`` for the loss call on ``outputs``, or None where no closed form is known.

    Args:
        call: The call that made the loss.
        outputs: Its first argument's value, of any shape; v and Hv have that shape.
    """
    if call is None:
        return None
    bound = inspect.signature(call.function).bind(*call.args, **call.kwargs)
    bound.apply_defaults()
    options = bound.arguments
    if options.get("reduction") not in ("mean", "sum") or options.get("reduce") or options.get("size_average"):
        return None
    return FORMS[call.function](outputs, **options)


def cross_entropy(
    logits: Tensor,
    *,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    reduction: str,
    **_: object,
) -> Product:
    """H = Σₙ cₙ (diag(pₙ) − pₙpₙᵀ), with p = softmax(logits) and cₙ = Σ_c w_c tₙ_c over the (smoothed) targets t.

    Logits have shape (C,) or (N, C, …), targets class indices of shape () or (N, …), or probabilities like the logits.
    """
    dim = 0 if logits.dim() == 1 else 1
    classes = logits.shape[dim]
    p = torch.softmax(logits.to(_at_least_float32(logits.dtype)), dim)
    w = torch.ones(classes, dtype=p.dtype, device=p.device) if weight is None else weight.to(p.dtype)
    if target.is_floating_point():
        smoothed = target.to(p.dtype) * (1.0 - label_smoothing) + label_smoothing / classes
        c = torch.tensordot(smoothed, w, dims=([dim], [0]))
        total = torch.tensor(p.numel() / classes)
    else:
        kept = target != ignore_index
        own = torch.where(kept, w[torch.where(kept, target, 0)], 0.0)
        c = (1.0 - label_smoothing) * own + torch.where(kept, label_smoothing * w.sum() / classes, 0.0)
        total = own.sum()
    if reduction == "mean":
        c = c / total
    cp = c.unsqueeze(dim) * p

    def product(v: Tensor) -> Tensor:
        v32 = v.to(p.dtype)
        return (cp * (v32 - (p * v32).sum(dim, keepdim=True))).to(v.dtype)

    return product


def mse(
    outputs: Tensor, *, target: Tensor, reduction: str, weight: Tensor | None = None, **_: object
) -> Product | None:
    """H = 2I, over the number of entries for the mean."""
    if weight is not None or target.shape != outputs.shape:
        return None
    scale = 2.0 / outputs.numel() if reduction == "mean" else 2.0
    return lambda v: scale * v


def binary_cross_entropy_with_logits(
    logits: Tensor, *, target: Tensor, weight: Tensor | None, pos_weight: Tensor | None, reduction: str, **_: object
) -> Product | None:
    """H = diag(w σ(1 − σ) (1 + (w₊ − 1) t)), over the number of entries for the mean."""
    if target.shape != logits.shape:
        return None
    sigma = torch.sigmoid(logits.to(_at_least_float32(logits.dtype)))
    h = sigma * (1.0 - sigma)
    if pos_weight is not None:
        h = h * (1.0 + (pos_weight - 1.0) * target)
    if weight is not None:
        h = h * weight
    if reduction == "mean":
        h = h / logits.numel()
    return lambda v: (h * v).to(v.dtype)


def huber(
    outputs: Tensor, *, target: Tensor, delta: float, reduction: str, weight: Tensor | None = None, **_: object
) -> Product | None:
    """H = diag(|z − t| < δ), over the number of entries for the mean."""
    if weight is not None or target.shape != outputs.shape:
        return None
    h = ((outputs - target).abs() < delta).to(outputs.dtype)
    if reduction == "mean":
        h = h / outputs.numel()
    return lambda v: (h * v).to(v.dtype)


def poisson_nll(
    outputs: Tensor, *, target: Tensor, log_input: bool, eps: float, reduction: str, **_: object
) -> Product | None:
    """H = diag(exp z) if z is the log of the rate, else diag(t / (z + ε)²), over the number of entries for the mean."""
    if target.shape != outputs.shape:
        return None
    z = outputs.to(_at_least_float32(outputs.dtype))
    h = z.exp() if log_input else target / (z + eps).square()
    if reduction == "mean":
        h = h / outputs.numel()
    return lambda v: (h * v).to(v.dtype)


def _at_least_float32(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


# A loss function → its form, which takes the outputs and, by their names, the function's other arguments. The calls of
# these functions are recorded.
FORMS: dict[Callable[..., object], Callable[..., Product | None]] = {
    F.cross_entropy: cross_entropy,
    F.mse_loss: mse,
    F.binary_cross_entropy_with_logits: binary_cross_entropy_with_logits,
    F.huber_loss: huber,
    F.poisson_nll_loss: poisson_nll,
}
