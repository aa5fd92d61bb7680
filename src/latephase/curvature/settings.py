"""What besides its arguments decides what a torch function computes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import torch


class Settings(NamedTuple):
    """What besides its arguments decides what a call computes."""

    grad: bool
    autocast: tuple[tuple[str, torch.dtype], ...]
    attention: tuple[bool, ...] | None

    @classmethod
    def now(cls, function: Callable[..., object]) -> Settings:
        """The present settings, as far as a function minds them."""
        autocast = tuple((d, torch.get_autocast_dtype(d)) for d in ("cpu", "cuda") if torch.is_autocast_enabled(d))
        attention = "attention" in getattr(function, "__name__", "")
        return cls(torch.is_grad_enabled(), autocast, _attention_kernels() if attention else None)

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Compute with these settings."""
        with ExitStack() as stack:
            stack.enter_context(torch.set_grad_enabled(self.grad))
            wanted = dict(self.autocast)
            for device in ("cpu", "cuda"):
                if torch.is_autocast_enabled(device) != (device in wanted) or device in wanted:
                    stack.enter_context(
                        torch.autocast(device, wanted.get(device), enabled=device in wanted, cache_enabled=False)
                    )
            # Where only the elementary kernel is enabled, that is what the caller wants.
            if self.attention is not None and any(_attention_kernels()[:-1]):
                stack.enter_context(_with_attention_kernels(self.attention))
            yield


def _attention_kernels() -> tuple[bool, ...]:
    return (
        torch._C._get_flash_sdp_enabled(),
        torch._C._get_mem_efficient_sdp_enabled(),
        torch._C._get_cudnn_sdp_enabled(),
        torch._C._get_math_sdp_enabled(),
    )


@contextmanager
def _with_attention_kernels(enabled: tuple[bool, ...]) -> Iterator[None]:
    setters = (
        torch._C._set_sdp_use_flash,
        torch._C._set_sdp_use_mem_efficient,
        torch._C._set_sdp_use_cudnn,
        torch._C._set_sdp_use_math,
    )
    before = _attention_kernels()
    try:
        for use, value in zip(setters, enabled, strict=True):
            use(value)
        yield
    finally:
        for use, value in zip(setters, before, strict=True):
            use(value)
