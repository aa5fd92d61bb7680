"""The flat view of the parameters: θ as one vector, read, written and split into shaped views."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class Parameters:
    """The trainable parameters of an optimizer's groups as one vector θ of length P.

    The order is that of the groups and of the parameters in each. Frozen parameters
    (``requires_grad=False``) are left out, so the view is made afresh at every step.

    Args:
        groups: An optimizer's ``param_groups``.

    Attributes:
        tensors: The trainable parameters, P entries in all.
        numel: P.
        device: The one device they live on; the CPU when there are none.
        dtype: The dtype of every flat vector, the widest of the parameters' own and at least
            float32, so that dot products over P entries keep their meaning with half-precision weights.

    Raises:
        ValueError: If the parameters are on several devices.
        TypeError: If one of them is complex, or not a plain strided tensor.
    """

    def __init__(self, groups: Sequence[dict[str, Any]]) -> None:
        self._groups = [(group, [p for p in group["params"] if p.requires_grad]) for group in groups]
        self.tensors: list[Tensor] = [p for _, members in self._groups for p in members]
        self._sizes = [p.numel() for p in self.tensors]
        self.numel = sum(self._sizes)
        self.device = self.tensors[0].device if self.tensors else torch.device("cpu")
        self.dtype = torch.float32
        for p in self.tensors:
            _check_supported(p, self.device)
            self.dtype = torch.promote_types(self.dtype, p.dtype)

    def read(self) -> Tensor:
        """Return a copy of θ, shape (P,)."""
        return self.join(self.tensors)

    def write(self, theta: Tensor) -> None:
        """Copy the vector ``theta``, shape (P,), into the parameters, keeping their storage and strides."""
        if not self.tensors:
            return
        with torch.no_grad():
            # One call, so that an interrupt falls before or after it and never between two layers.
            torch._foreach_copy_(self.tensors, self.split(theta))

    def split(self, vector: Tensor) -> list[Tensor]:
        """Cut ``vector``, shape (P,), into tensors with the parameters' shapes and dtypes."""
        pieces = vector.split(self._sizes)
        return [piece.view(p.shape).to(p.dtype) for piece, p in zip(pieces, self.tensors, strict=True)]

    def join(self, tensors: Iterable[Tensor | None]) -> Tensor:
        """Return the tensors, shaped like the parameters, as one new vector of shape (P,); None means zeros."""
        flat = []
        for p, tensor in zip(self.tensors, tensors, strict=True):
            if tensor is None:
                tensor = torch.zeros_like(p, memory_format=torch.contiguous_format)
            flat.append((tensor.to_dense() if tensor.is_sparse else tensor).detach().reshape(-1).to(self.dtype))
        return torch.cat(flat) if flat else torch.zeros(0, dtype=self.dtype, device=self.device)

    def spread(self, key: str) -> float | Tensor:
        """Return the groups' option ``key``: one number where all agree, else a vector of shape (P,)."""
        values = [(float(group[key]), sum(p.numel() for p in members)) for group, members in self._groups]
        if all(value == values[0][0] for value, _ in values):
            return values[0][0]
        return torch.cat([torch.full((n,), value, dtype=self.dtype, device=self.device) for value, n in values])

    def at(self, tensors: Sequence[Tensor]) -> Substitution:
        """Within the returned context every use of parameter i sees ``tensors[i]`` instead."""
        return Substitution(self.tensors, tensors)


def plus_scaled(x: Tensor, factor: float | Tensor, v: Tensor) -> Tensor:
    """Return x + factor · v, vectors of shape (P,), with no more memory than the result takes."""
    return torch.addcmul(x, factor, v) if isinstance(factor, Tensor) else torch.add(x, v, alpha=factor)


def _check_supported(p: Tensor, device: torch.device) -> None:
    if p.device != device:
        raise ValueError(
            f"all trainable parameters must be on one device, but one is on {device} and one on {p.device}; "
            "move the model, or give each device its own optimizer"
        )
    if p.is_complex():
        raise TypeError(
            f"a parameter of shape {tuple(p.shape)} has the complex dtype {p.dtype}; "
            "store its real and imaginary parts (torch.view_as_real) as a real parameter"
        )
    if p.layout != torch.strided:
        raise TypeError(f"a parameter of shape {tuple(p.shape)} has layout {p.layout}; it must be torch.strided")


def function_modes() -> list[TorchFunctionMode]:
    """The modes that are active, the innermost last."""
    return torch.overrides._get_current_function_mode_stack()


def leave_function_modes(depth: int) -> None:
    """Leave all but the outermost ``depth`` modes: an interrupt can fall while a context is entered or left."""
    for mode in reversed(function_modes()[depth:]):
        mode.__exit__(None, None, None)


class Substitution(TorchFunctionMode):
    """Evaluate code as if some tensors were others, without touching either.

    Every torch function that would receive one of ``originals`` receives its substitute, whether it comes
    from a module, a closure, a list of weights or a custom autograd function. So a trial point needs no
    write into the model. ``Tensor.backward`` is skipped, which lets an ordinary training closure serve as it is:
    the caller differentiates the loss that it returns.
    """

    def __init__(self, originals: Sequence[Tensor], substitutes: Sequence[Tensor]) -> None:
        super().__init__()
        # The originals are kept alive with the table, so that no id is ever reused.
        self._originals = tuple(originals)
        self._table = {id(p): q for p, q in zip(originals, substitutes, strict=True)}

    def __enter__(self) -> Substitution:
        super().__enter__()
        # Compiled code would not see the substitutes. It is there only if the compiler has been imported.
        if "torch._dynamo" in sys.modules:
            self._eager = torch.compiler.set_stance("force_eager")
            self._eager.__enter__()
        return self

    def __exit__(self, *exc: Any) -> None:
        if hasattr(self, "_eager"):
            self._eager.__exit__(*exc)
        super().__exit__(*exc)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is torch.Tensor.backward or func is torch.autograd.backward:
            return None
        kwargs = {key: self._swap(value) for key, value in kwargs.items()} if kwargs else {}
        return self._call(func, tuple(self._swap(arg) for arg in args), kwargs)

    def _call(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return func(*args, **kwargs)

    def _swap(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self._table.get(id(value), value)
        if type(value) in (list, tuple):
            return type(value)(self._swap(item) for item in value)
        return value
