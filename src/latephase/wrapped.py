"""Wrappers around a model that average gradients over processes: quiet while a step does its own averaging."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel

# No all-reduce in `backward()`, which a step does not go through; no broadcast of buffers by each forward pass, which
# ranks may have different numbers of; and no function of its own around the outputs, which hides them from curvature.
QUIET = {
    "require_backward_grad_sync": False,
    "require_forward_param_sync": False,
    "find_unused_parameters": False,
    "static_graph": False,
}


class Wrappers:
    """The wrappers that the closures of a step call."""

    def __init__(self) -> None:
        self._found: list[tuple[nn.Module, dict[str, Any]]] = []

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """A context in which those that were found, or are found meanwhile, only call the module inside them."""
        for module, _ in self._found:
            vars(module).update(QUIET)
        try:
            yield
        finally:
            for module, before in self._found:
                vars(module).update(before)

    def find(self, module: nn.Module) -> bool:
        """Quieten a module if it is such a wrapper.

        Returns:
            Whether it is.

        Raises:
            RuntimeError: For wrappers that cannot be quiet.
        """
        if isinstance(module, DistributedDataParallel):
            self._found.append((module, {name: vars(module)[name] for name in QUIET}))
            vars(module).update(QUIET)
            return True
        name = type(module).__name__
        if name in ("DistributedDataParallel", "FullyShardedDataParallel") or name.startswith("FSDP"):
            raise RuntimeError(
                f"the model is wrapped in {name}, which averages gradients over processes only in backward(), where a "
                "step does not go. Call the module inside the wrapper (model.module), or wrap it in torch's "
                'DistributedDataParallel, and let HessianFree(process_group="world") do the averaging'
            )
        return False
