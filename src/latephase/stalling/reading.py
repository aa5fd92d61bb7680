"""What a step left behind in parameters and gradients: a copy of each, and three products of vectors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from latephase.stalling.progress import Sample


class Reading:
    """Reads an optimizer after each step, for which it keeps the parameters of the step before.

    Args:
        gradients: Whether gradients are read, too, and those of the step before kept.
    """

    def __init__(self, gradients: bool) -> None:
        self._gradients = gradients
        self._x: Tensor | None = None
        self._g: Tensor | None = None
        self._rates: list[float] = []

    def rates_changed(self, optimizer: Optimizer) -> bool:
        """Return whether learning rates, one per parameter group, are others than the last time; note them."""
        before, self._rates = self._rates, [float(group.get("lr", 0.0)) for group in optimizer.param_groups]
        return bool(before) and before != self._rates

    @torch.no_grad()
    def read(self, optimizer: Optimizer, loss: float) -> Sample | None:
        """Return what the last step left behind; None the first time, when there is nothing to compare with.

        Raises:
            ValueError: If there are gradients to read, but the optimizer has none, or if there are more or fewer
                parameters than before.
        """
        x, before = _flat([p for group in optimizer.param_groups for p in group["params"]]), self._x
        if before is not None and before.shape != x.shape:
            raise ValueError(f"the optimizer has {len(x):,} parameters, but those before were {len(before):,}")
        self._x = x
        product = self._product(optimizer, x if before is None else before) if self._gradients else None
        if before is None:
            return None
        u = x - before.to(x)
        drift, length = torch.stack([torch.dot(before.to(x), u), torch.dot(u, u) / 2.0]).tolist()
        return Sample(loss, -drift - length, length, product)

    def _product(self, optimizer: Optimizer, x: Tensor) -> float | None:
        """⟨g, g'⟩ of this gradient and the one before, weight decay included."""
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        if all(p.grad is None for p in parameters):
            raise ValueError("tests=('pflug',) reads gradients: call update after step and before zero_grad")
        before, self._g = self._g, _flat([torch.zeros_like(p) if p.grad is None else p.grad for p in parameters])
        start = 0
        for group in optimizer.param_groups:
            end = start + sum(p.numel() * (2 if p.is_complex() else 1) for p in group["params"])
            if group.get("weight_decay"):
                self._g[start:end].add_(x[start:end].to(self._g), alpha=float(group["weight_decay"]))
            start = end
        return None if before is None else torch.dot(before.to(self._g), self._g).item()

    def state(self) -> dict[str, Any]:
        """Return copies of what is kept, as tensors and numbers; an empty tensor is for none yet."""
        x, g = (torch.empty(0) if kept is None else kept.clone() for kept in (self._x, self._g))
        return {"x": x, "g": g, "rates": list(self._rates)}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a `state`."""
        self._x, self._g = (state[name].clone() if len(state[name]) else None for name in ("x", "g"))
        self._rates = [float(rate) for rate in state["rates"]]


def _flat(tensors: list[Tensor]) -> Tensor:
    """One vector of all entries, in float32 or the larger type that the first has, on its device."""
    first = tensors[0]
    like = torch.empty(
        0,
        dtype=torch.promote_types(torch.float32, first.real.dtype if first.is_complex() else first.dtype),
        device=first.device,
    )
    return torch.cat([(torch.view_as_real(t) if t.is_complex() else t).detach().reshape(-1).to(like) for t in tensors])
