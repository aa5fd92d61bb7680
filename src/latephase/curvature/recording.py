"""Watch a closure run: what it takes from outside, and what makes another run the same program."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from latephase.parameters import Substitution

LOSSES = (F.cross_entropy, F.mse_loss, F.binary_cross_entropy_with_logits)

# Functions that take a value out of a tensor into Python.
READS = {
    Tensor.item,
    Tensor.tolist,
    Tensor.numpy,
    Tensor.__bool__,
    Tensor.__float__,
    Tensor.__int__,
    Tensor.__index__,
    Tensor.__complex__,
    Tensor.__array__,
    Tensor.__format__,
    Tensor.__repr__,
    Tensor.equal,
    Tensor.allclose,
    torch.equal,
    torch.allclose,
}


class LossCall(NamedTuple):
    """A call of one of PyTorch's loss functions, and its result."""

    function: Callable[..., Tensor]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: Tensor


class Record(NamedTuple):
    """What a closure did.

    Attributes:
        fingerprint: Every torch function it called, with all arguments that are not tensors and, for tensors, where
            they came from. Equal fingerprints mean the same program: whatever Python did with values, shapes or
            flags either shows in a call or has no influence on the result.
        externals: Tensors that it took from outside, other than the parameters, in the order of their first use:
            data, buffers, constants.
        reads: Values it took out of tensors (``.item()`` and the like), in order.
        loss_calls: Its calls of known loss functions.
    """

    fingerprint: tuple[Any, ...]
    externals: list[Tensor]
    reads: list[Any]
    loss_calls: list[LossCall]


class Recording(Substitution):
    """A :class:`~latephase.parameters.Substitution` that keeps a :class:`Record`."""

    def __init__(self, originals: Sequence[Tensor], substitutes: Sequence[Tensor]) -> None:
        super().__init__(originals, substitutes)
        self._calls: list[Any] = []
        self._names: dict[int, tuple[weakref.ref[Tensor], Any]] = {}
        self._results = 0
        self._externals: list[Tensor] = []
        self._reads: list[Any] = []
        self._loss_calls: list[LossCall] = []
        for i, q in enumerate(substitutes):
            self._names[id(q)] = (weakref.ref(q), ("parameter", i, *_metadata(q)))

    @property
    def record(self) -> Record:
        """What has been seen so far."""
        return Record(tuple(self._calls), self._externals, self._reads, self._loss_calls)

    def _call(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._calls.append((func, _autocast(), self._key(args), self._key(kwargs)))
        result = super()._call(func, args, kwargs)
        for tensor in _tensors(result):
            self._names[id(tensor)] = (weakref.ref(tensor), ("result", self._results))
            self._results += 1
        if func in READS:
            self._reads.append(result)
        elif func in LOSSES:
            self._loss_calls.append(LossCall(func, args, kwargs, result))
        return result

    def _key(self, value: Any) -> Any:
        """Something hashable that equals the key of an equivalent argument in another run."""
        if isinstance(value, Tensor):
            return self._name(value)
        if isinstance(value, (list, tuple)):
            return (type(value), *map(self._key, value))
        if isinstance(value, dict):
            return (dict, *((key, self._key(item)) for key, item in value.items()))
        if isinstance(value, slice):
            return (slice, self._key(value.start), self._key(value.stop), self._key(value.step))
        if hasattr(value, "tobytes"):  # NumPy data become constants of the program
            return (type(value), str(value.dtype), value.shape, value.tobytes())
        try:
            hash(value)
        except TypeError:
            return object()  # equal to nothing, so never mistaken for another
        return (type(value), value)

    def _name(self, tensor: Tensor) -> Any:
        known = self._names.get(id(tensor))
        if known is not None and known[0]() is tensor:
            return known[1]
        name = ("external", len(self._externals), *_metadata(tensor))
        self._names[id(tensor)] = (weakref.ref(tensor), name)
        self._externals.append(tensor)
        return name


class Replay(Substitution):
    """Run the closure again on stand-ins without values: values it reads are those that it read before."""

    def __init__(self, originals: Sequence[Tensor], substitutes: Sequence[Tensor], reads: Sequence[Any]) -> None:
        super().__init__(originals, substitutes)
        self._reads = iter(reads)

    def _call(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return next(self._reads) if func in READS else super()._call(func, args, kwargs)


def _metadata(tensor: Tensor) -> tuple[Any, ...]:
    return (
        tensor.shape,
        tensor.stride() if tensor.layout is torch.strided else tensor.layout,
        tensor.dtype,
        tensor.device,
        tensor.requires_grad,
    )


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)


def _autocast() -> tuple[Any, ...]:
    return tuple(torch.get_autocast_dtype(kind) for kind in ("cpu", "cuda") if torch.is_autocast_enabled(kind))
