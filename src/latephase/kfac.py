"""Momentum in the metric of Kronecker factors (K-FAC): for the end of a training whose gradients are noisy."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias, TypeGuard

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import unfold
from torch.utils.hooks import RemovableHandle

from latephase.checks import fraction, function, non_negative, positive, positive_integer
from latephase.parameters import refuse_sharded
from latephase.records import StepUndoneWarning

LIKE_ADAM = 0.2  # root mean square of an update over the learning rate, as that of Adam's (Liu et al. 2025)
MEMORY = 0.95  # of the factors, from one record to the next (Martens & Grosse 2015, Section 5)

Layer: TypeAlias = nn.Linear | nn.Conv2d

Rows = list[tuple[Tensor, Tensor]]
"""Inputs a, [n, in], and slopes of the loss in the outputs, [n, out], of each call of a layer."""


class KFAC(torch.optim.Optimizer):
    """Steps along (B + μI)⁻¹ M (A + νI)⁻¹ for matrices and kernels; Adam's for all other parameters.

    A layer's curvature is taken for the Kronecker product of A, the mean of its inputs' aaᵀ, and B, that of ggᵀ for the
    slopes g of the loss in its outputs (Martens & Grosse 2015; Grosse & Martens 2016 for convolutions, whose inputs are
    the windows that the kernel sees). M is the momentum of the weight's gradient. That fixes the direction; the length
    is such that the root mean square of an update is 0.2 · lr, as with Muon, so that Adam's learning rates serve, and
    scales of factors do not matter. g is of the targets, not of others drawn from the network's own distribution.

    It costs two matrix products per layer, and once in `every` steps the factors. Where gradients are without noise
    `HessianFree(solver="auto")` is far ahead; see docs/when-it-helps.md for both. A weight that is used otherwise than
    by calling its layer has no metric: its steps are along the momentum itself.

    Args:
        model: The network. `nn.Linear` and `nn.Conv2d` (without groups, and no classes made from them) are taken in
            its metric.
        lr: Learning rate, ≥ 0; let it fall towards the end, along half a cosine say.
        momentum: In [0, 1), Nesterov's. (0.95: that of Muon.)
        damping: μ and ν, in units of the mean eigenvalue of B and A, > 0.
        every: Steps from one record of factors to the next.
        rows: Most inputs and slopes of a call that a record takes.
        weight_decay: ≥ 0, as L2 term.
        betas: Adam's.

    Raises:
        TypeError: For an argument of another type, or parameters that are neither float32 nor float64, or sharded.
        ValueError: For one that is out of range, or a network without parameters to train.

    >>> torch.manual_seed(0)
    <torch._C.Generator object at ...>
    >>> model, x = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 3)), torch.randn(64, 3)
    >>> opt = KFAC(model, lr=0.05)
    >>> def closure():
    ...     opt.zero_grad()
    ...     loss = (model(x) - x).square().mean()
    ...     loss.backward()
    ...     return loss
    >>> losses = [float(opt.step(closure)) for _ in range(50)]
    >>> losses[-1] < 0.1 * losses[0]
    True
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float = 1e-3,
        momentum: float = 0.95,
        damping: float = 0.1,
        every: int = 10,
        rows: int = 256,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch Module, not {type(model).__name__}")
        if fraction("momentum", momentum) == 1.0:
            raise ValueError(f"momentum must be in [0, 1), not {momentum!r}")
        self._every, self._rows = positive_integer("every", every), positive_integer("rows", rows)
        parameters = [p for p in model.parameters() if p.requires_grad]
        refuse_sharded(parameters)
        if not parameters:
            raise ValueError("the network has no parameters to train")
        for p in parameters:
            if p.dtype not in (torch.float32, torch.float64):
                raise TypeError(f"parameters must be float32 or float64, not {p.dtype}")
        self._layers = [m for m in model.modules() if _known(m)]
        weights = list(dict.fromkeys(layer.weight for layer in self._layers))
        others = [p for p in parameters if all(p is not weight for weight in weights)]
        settings = {
            "lr": non_negative("lr", lr),
            "weight_decay": non_negative("weight_decay", weight_decay),
            "momentum": momentum,
            "damping": positive("damping", damping),
            "steps": 0,
        }
        self._rest = torch.optim.Adam([{"params": others}], lr=lr, betas=betas, weight_decay=weight_decay)
        super().__init__([{"params": weights, **settings}, *self._rest.param_groups], {"lr": lr})

    def __getstate__(self) -> dict[str, Any]:
        """What copies and pickles keep: the layers too, so that a copy of network and optimizer goes on as they do."""
        own = {name: self.__dict__[name] for name in ("_every", "_rows", "_layers", "_rest")}
        return {**own, **super().__getstate__()}

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor]) -> Tensor:  # type: ignore[override]
        """Take one step.

        Args:
            closure: Sets gradients to zero, computes the loss and its gradients, and returns it.

        Returns:
            The loss before the step, without its graph.

        Raises:
            RuntimeError: Where several processes train together.
            TypeError: If the closure is none.

        Warns:
            StepUndoneWarning: If a gradient is not finite. Parameters and state are as before then.
        """
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            raise RuntimeError(
                f"torch.distributed runs {dist.get_world_size()} processes, and each would have factors of its own, so "
                "that their networks would part; KFAC is for one process"
            )
        own, rest = self.param_groups
        with torch.enable_grad(), self._watched(own["steps"] % self._every == 0) as seen:
            loss = function("closure", closure)().detach()
        if not all(bool(p.grad.isfinite().all()) for p in _parameters(self.param_groups) if p.grad is not None):
            warnings.warn("a gradient is not finite: nothing was changed", StepUndoneWarning, stacklevel=2)
            return loss
        for weight, found in seen.items():
            self._learn(weight, found, own["damping"])
        for weight in own["params"]:
            if weight.grad is not None:
                self._move(weight, own)
        self._rest.param_groups, self._rest.state = [rest], self.state
        self._rest.step()
        own["steps"] += 1
        return loss

    @contextmanager
    def _watched(self, record: bool) -> Iterator[dict[Tensor, Rows]]:
        """Write down what layers are given, and the slopes in what they return; nothing if not to record."""
        seen: dict[Tensor, Rows] = {}
        handles: list[RemovableHandle] = []

        def watch(layer: nn.Module, args: tuple[Tensor, ...], named: dict[str, Tensor], output: Tensor) -> None:
            assert isinstance(layer, (nn.Linear, nn.Conv2d))
            if output.requires_grad:
                a, weight = (args[0] if args else named["input"]).detach(), layer.weight
                output.register_hook(lambda g: seen.setdefault(weight, []).append(self._few(layer, a, g)))

        try:
            handles.extend(layer.register_forward_hook(watch, with_kwargs=True) for layer in self._layers if record)
            yield seen
        finally:
            for handle in handles:
                handle.remove()

    def _few(self, layer: Layer, a: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs [n, in] and slopes [n, out] of some examples, and of some places in them, evenly spread."""
        if a.dim() == (3 if isinstance(layer, nn.Conv2d) else 1):  # a single example
            a, g = a.unsqueeze(0), g.unsqueeze(0)
        every = math.ceil(len(a) / self._rows) or 1
        a, g = _as_rows(layer, a[::every], g[::every])
        every = math.ceil(len(a) / self._rows) or 1
        return a[::every].to(layer.weight.dtype), g[::every].to(layer.weight.dtype)  # which autocast may have changed

    def _learn(self, weight: Tensor, seen: Rows, damping: float) -> None:
        """Let the factors take a record in, and invert them."""
        state = self.state[weight]
        state["records"] = state.get("records", torch.zeros((), device="cpu")) + 1.0
        share = max(1.0 / float(state["records"]), 1.0 - MEMORY)  # a mean at first
        for side, name in enumerate(("inputs", "slopes")):
            rows = torch.cat([pair[side] for pair in seen])
            new = rows.T @ rows / len(rows)
            factor = state[name] = state[name].lerp(new, share) if name in state else new
            damped = factor.clone()
            damped.diagonal().add_(damping * factor.diagonal().mean())
            root, failed = torch.linalg.cholesky_ex(damped)
            if not bool(failed):  # as it is where all rows are zero; what was known before serves on
                state[f"inverse_{name}"] = torch.cholesky_inverse(root)

    def _move(self, weight: nn.Parameter, group: dict[str, float]) -> None:
        """Update momentum and weight."""
        assert weight.grad is not None
        state, g = self.state[weight], weight.grad.add(weight, alpha=group["weight_decay"])
        momentum = state["momentum"] = state["momentum"].lerp(g, 1.0 - group["momentum"]) if "momentum" in state else g
        d = g.lerp(momentum, group["momentum"]).flatten(1)
        if "inverse_inputs" in state and "inverse_slopes" in state:
            d = state["inverse_slopes"] @ d @ state["inverse_inputs"]
        length = float(d.norm())
        if length > 0.0:
            weight.add_(d.view_as(weight), alpha=-group["lr"] * LIKE_ADAM * math.sqrt(d.numel()) / length)


def _parameters(groups: list[dict[str, Any]]) -> Iterator[nn.Parameter]:
    for group in groups:
        yield from group["params"]


def _known(layer: nn.Module) -> TypeGuard[Layer]:
    """Whether a layer's weight is taken in its metric."""
    # Not of classes of their own: attention's projection is one, and never called.
    if type(layer) not in (nn.Linear, nn.Conv2d) or not layer.weight.requires_grad:
        return False
    if isinstance(layer, nn.Conv2d):
        return layer.groups == 1 and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    return True


def _as_rows(layer: Layer, a: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """Each input that a row of the weight is multiplied with, [n, in], and the slope there, [n, out]."""
    if isinstance(layer, nn.Conv2d):
        assert not isinstance(layer.padding, str)
        windows = unfold(a, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
        return windows.mT.flatten(0, 1), g.flatten(2).mT.flatten(0, 1)
    return a.flatten(0, -2), g.flatten(0, -2)
