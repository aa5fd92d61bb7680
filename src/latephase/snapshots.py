"""What modules and the optimizer hold, as a step finds it, and how to put it back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from latephase.random_state import rewind
from latephase.watching import put_back, version_of

# What PyTorch itself keeps in a module's dictionary, as opposed to what its author does.
_PYTORCHS_OWN = frozenset(vars(nn.Module())) - {"training"}


class Buffer:
    """A buffer's place in its module, the tensor that lay there (None before a lazy first call), and its values."""

    def __init__(self, module: nn.Module, name: str) -> None:
        self.module, self.name = module, name
        self._tensor = getattr(module, name)
        self._values = None if self._tensor is None else self._tensor.detach().clone()
        self._version = None if self._tensor is None else version_of(self._tensor)

    @property
    def changed(self) -> bool:
        """Whether the tensor was written to since, or may have been."""
        return self._tensor is not None and (self._version is None or self._tensor._version != self._version)

    def restore(self) -> None:
        """Put the tensor back into its place, and its values into the tensor if it was written to since."""
        if self.changed:
            self._copy()
        self._place()

    def enforce(self) -> None:
        """The same, whether or not a write was counted."""
        if self._tensor is not None:
            self._copy()
        self._place()

    def _copy(self) -> None:
        assert self._values is not None
        put_back(self._tensor, self._values, self._tensor, self._version)

    def _place(self) -> None:
        if getattr(self.module, self.name) is not self._tensor:
            setattr(self.module, self.name, self._tensor)


class Attributes:
    """What a module's author keeps in it besides parameters, buffers and modules: flags, counters, hidden states."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self._values = {name: value for name, value in vars(module).items() if name not in _PYTORCHS_OWN}
        self._rewinds = [back for value in self._values.values() if (back := rewind(value)) is not None]

    changed = False  # no backward pass reads an attribute

    def restore(self) -> None:
        """Put every attribute back, and every generator among them."""
        now = vars(self.module)
        for name in [name for name in now if name not in self._values and name not in _PYTORCHS_OWN]:
            del now[name]
        for name, value in self._values.items():
            if now.get(name, self) is not value:
                now[name] = value
        for back in self._rewinds:
            back()

    enforce = restore


class OptimizerState:
    """An optimizer's own state for its parameters, and the λ of each of its groups.

    Args:
        optimizer: The optimizer.
        tensors: The parameters whose state a step may replace.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, tensors: list[Tensor]) -> None:
        self._optimizer, self._tensors = optimizer, tensors
        self._state: dict[Tensor, dict[str, Any]] = {
            p: dict(optimizer.state[p]) for p in tensors if p in optimizer.state
        }
        self._damping = [group["damping"] for group in optimizer.param_groups]

    def restore(self) -> None:
        """Put it back."""
        for p in self._tensors:
            self._optimizer.state.pop(p, None)
        self._optimizer.state.update(self._state)
        for group, damping in zip(self._optimizer.param_groups, self._damping, strict=True):
            group["damping"] = damping
