"""The diagonal of the empirical Fisher matrix (Martens 2010, Section 4.7)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from latephase.curvature.program import mapped
from latephase.parameters import Parameters


class Substitution(TorchFunctionMode):
    """Evaluate code as if some tensors were others: every torch function that would receive one receives the other."""

    def __init__(self, originals: Sequence[Tensor], substitutes: Sequence[Tensor]) -> None:
        super().__init__()
        self._table = {id(p): q for p, q in zip(originals, substitutes, strict=True)}

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        return func(*mapped(args, self._swap), **mapped(kwargs or {}, self._swap))

    def _swap(self, value: object) -> object:
        return self._table.get(id(value), value)


def diagonal_empirical_fisher(
    model: nn.Module,
    loss_func: Callable[..., Tensor],
    inputs: Tensor,
    targets: Tensor,
    parameters: Parameters,
    *,
    reduction: str,
    chunk_size: int = 64,
) -> Tensor:
    """Return Σᵢ gᵢ² (`reduction="sum"`) or its mean over the N samples (`"mean"`), shape (P,).

    gᵢ is the gradient of the loss of sample i alone: `loss_func(model(x[None]), y[None])`.

    Args:
        model: Maps a batch of inputs to outputs; samples must not influence each other.
        loss_func: Maps `(outputs, targets)` to the loss.
        inputs: N samples, first dimension N.
        targets: N targets, first dimension N.
        parameters: The parameters to differentiate by, P entries in all.
        reduction: `"sum"` or `"mean"`.
        chunk_size: Samples whose gradients are in memory at once.

    Raises:
        ValueError: If a BatchNorm layer is in training mode: its samples have no gradients of their own.
    """
    _refuse_batch_statistics(model)
    if len(inputs) != len(targets) or len(inputs) == 0:
        raise ValueError(f"inputs and targets must be as many and at least one, not {len(inputs)} and {len(targets)}")

    def sample_loss(tensors: list[Tensor], x: Tensor, y: Tensor) -> Tensor:
        with Substitution(parameters.tensors, tensors):
            return loss_func(model(x.unsqueeze(0)), y.unsqueeze(0))

    theta = [p.detach() for p in parameters.tensors]
    sample_grad = torch.func.grad(sample_loss)
    batch_grads = torch.func.vmap(sample_grad, in_dims=(None, 0, 0), randomness="different")
    total = torch.zeros(parameters.numel, dtype=parameters.dtype, device=parameters.device)
    for x, y in zip(inputs.split(chunk_size), targets.split(chunk_size), strict=True):
        x, y = x.to(parameters.device), y.to(parameters.device)
        try:
            grads = batch_grads(theta, x, y)
        except RuntimeError:  # no batching rule, as for recurrent layers: one sample after the other
            each = zip(*(sample_grad(theta, *sample) for sample in zip(x, y, strict=True)), strict=True)
            grads = [torch.stack(g) for g in each]
        # Not in place: what is written to during an evaluation is put back after it.
        total = total + parameters.join([g.square().sum(dim=0) for g in grads])
    return total / len(inputs) if reduction == "mean" else total


def _refuse_batch_statistics(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training:
            raise ValueError(
                f"the layer {name!r} ({type(module).__name__}) mixes the samples of a batch in training mode, "
                "so that samples have no gradients of their own; call model.eval() first"
            )
