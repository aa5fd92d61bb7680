"""What a step must not disturb: the random number stream and the buffers of the modules it calls."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils.hooks import RemovableHandle


class _Buffer(NamedTuple):
    """A buffer's place in its module, the tensor that lay there (None before a lazy first call), and its values."""

    module: nn.Module
    name: str
    tensor: Tensor | None
    values: Tensor | None

    @classmethod
    def at(cls, module: nn.Module, name: str) -> _Buffer:
        """The buffer as it lies in the module now."""
        tensor = getattr(module, name)
        return cls(module, name, tensor, None if tensor is None else tensor.detach().clone())

    def restore(self) -> None:
        # Through .data: a write that autograd counted would spoil the graphs kept for curvature products.
        if self.tensor is not None and self.values is not None and not _same(self.tensor, self.values):
            self.tensor.data.copy_(self.values)
        if getattr(self.module, self.name) is not self.tensor:
            setattr(self.module, self.name, self.tensor)


class Transaction:
    """Make every evaluation of one step see the same network, and let the step be undone.

    Each evaluation starts from the random number state and the buffers that the step found. What the *first*
    evaluation (a forward pass at θ on the model batch) did to them is the step's one canonical update: it is what
    :meth:`commit` leaves behind. Everything else is rolled back. Buffers are found as their modules are called.

    Args:
        device: Where the parameters live; its random number generator is kept besides the CPU's.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._start_rng = rng_state(device)
        self._start_buffers: dict[tuple[int, str], _Buffer] = {}
        self._seen: set[nn.Module] = set()
        self._after: tuple[list[Tensor], list[_Buffer]] | None = None
        self._hook: RemovableHandle | None = None

    @contextmanager
    def evaluation(self, micro_batch: int = 0) -> Iterator[None]:
        """Run one evaluation of the network.

        Args:
            micro_batch: Its number within its batch. Each number has its own random numbers, the same whenever
                it is evaluated in this step; number 0 continues the stream that the step found.
        """
        set_rng_state(self._device, self._start_rng)
        if micro_batch > 0:
            _seed(self._device, int(torch.randint(2**62, (), device="cpu")) + micro_batch)
        _quieten_compiler_about_hooks()
        self._hook = register_module_forward_pre_hook(self._remember)
        try:
            yield
        finally:
            if self._after is None:
                self._after = (
                    rng_state(self._device),
                    [_Buffer.at(b.module, b.name) for b in self._start_buffers.values()],
                )
            self.rollback()

    def rollback(self) -> None:
        """Leave the random number state and the buffers as the step found them, and watch modules no longer."""
        if self._hook is not None:
            self._hook.remove()
        set_rng_state(self._device, self._start_rng)
        for buffer in self._start_buffers.values():
            buffer.restore()

    def commit(self) -> None:
        """Leave them as the first evaluation left them."""
        if self._after is not None:
            rng, buffers = self._after
            set_rng_state(self._device, rng)
            for buffer in buffers:
                buffer.restore()

    def _remember(self, module: nn.Module, args: object) -> None:
        """Copy the buffers of a module and its children before its first call."""
        if module in self._seen:
            return
        # Whoever watches the evaluation's operations is not to see these.
        with torch._C.DisableTorchFunction(), _disable_current_modes():
            for child in module.modules():
                if child not in self._seen:
                    self._seen.add(child)
                    for name, _ in child._buffers.items():  # noqa: PERF102 — TorchScript's look-alike has only this
                        self._start_buffers[id(child), name] = _Buffer.at(child, name)


_ABOUT_HOOKS = r"Using `torch\.compile\(module\)` when there are global hooks"


def _quieten_compiler_about_hooks() -> None:
    """The compiler warns that a hook like ours may be called twice for one call of a module; it may be.

    The filter stays: taking it back would make Python show again each warning that it has shown once.
    """
    if "torch._dynamo" not in sys.modules:
        return
    if not any(message is not None and message.pattern == _ABOUT_HOOKS for _, message, *_ in warnings.filters):
        warnings.filterwarnings("ignore", message=_ABOUT_HOOKS)


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors agree to the bit, NaN included."""
    return torch.equal(a, b) or bool(((a == b) | ((a != a) & (b != b))).all())


def rng_state(device: torch.device) -> list[Tensor]:
    """Return the state of the default random number generators of the CPU and, if it is a GPU, of the device."""
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return states


def set_rng_state(device: torch.device, states: list[Tensor]) -> None:
    """Go back to a state that :func:`rng_state` returned for the same device."""
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)


def _seed(device: torch.device, seed: int) -> None:
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        index = device.index if device.index is not None else torch.cuda.current_device()
        torch.cuda.default_generators[index].manual_seed(seed)
