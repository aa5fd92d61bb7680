"""A closure's recorded calls as a program: what is needed of them, and what makes two alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeGuard

import torch
from torch import Tensor

from latephase.curvature.settings import Settings
from latephase.watching import is_plain

# Where a number among the arguments may be any number: it becomes an input of the program, which then serves a loss
# weight that is annealed or a count of tokens without being traced anew.
ARITHMETIC = {
    getattr(namespace, name)
    for namespace, names in {
        torch: ["add", "sub", "mul", "div", "true_divide", "rsub"],
        Tensor: [
            *("add", "sub", "mul", "div", "true_divide", "add_", "sub_", "mul_", "div_"),
            *(f"__{prefix}{name}__" for name in ("add", "sub", "mul", "truediv") for prefix in ("", "r", "i")),
        ],
    }.items()
    for name in names
}
SMALL_INTEGERS = range(-2, 3)  # these are part of what is computed, such as the zero that a sum() begins with


class Metadata(NamedTuple):
    """What a program minds of a tensor besides its values.

    Attributes:
        shape: Its shape.
        strides: How it lies in memory; the layout of a tensor that has no strides.
        dtype: Its type.
        device: Where it is.
        requires_grad: Whether it has a graph, or is a leaf with a gradient.
    """

    shape: torch.Size
    strides: tuple[int, ...] | torch.layout
    dtype: torch.dtype
    device: torch.device
    requires_grad: bool

    @classmethod
    def of(cls, tensor: Tensor) -> Metadata:
        """What is to be minded of `tensor` now."""
        strides = tensor.stride() if is_plain(tensor) else tensor.layout
        return cls(tensor.shape, strides, tensor.dtype, tensor.device, tensor.requires_grad)


class Parameter(NamedTuple):
    """An argument that is a parameter, by its number."""

    number: int
    metadata: Metadata


class Result(NamedTuple):
    """An argument that an earlier call returned, by its number; inactive if it does not depend on parameters."""

    number: int
    active: bool = True


class External(NamedTuple):
    """An argument that does not depend on the parameters: data, buffers, or what the closure made of them.

    Attributes:
        tensor: The tensor itself.
        made_by: Number of the result that it is, where a recorded call made it.
        metadata: Its shape and the like when it was used.
        storage: Where its values lie.
    """

    tensor: Tensor
    made_by: int | None
    metadata: Metadata
    storage: int


class Input(NamedTuple):
    """An argument that the program takes from outside, by its number among them."""

    number: int


Origin = Parameter | Result | External | Input


class Call(NamedTuple):
    """One call of a torch function.

    Attributes:
        function: The function.
        args: Its arguments; tensors are replaced by `Parameter`, `Result` or `External`.
        kwargs: Likewise.
        settings: What else decides what it computes.
        results: Numbers of the tensors it returned.
        metadata: Their shapes and the like.
        written: The storages it wrote to.
        storages: Those of all its arguments and results.
        active: Whether what it returned or wrote to depends on parameters (or on another leaf with a gradient).
        random: Whether it drew random numbers, and is not active.
    """

    function: Callable[..., object]
    args: tuple[object, ...]
    kwargs: dict[str, object]
    settings: Settings
    results: tuple[int, ...]
    metadata: tuple[Metadata, ...]
    written: frozenset[int]
    storages: frozenset[int]
    active: bool
    random: bool


class Program(NamedTuple):
    """What a closure computed on its way from the parameters to loss and outputs.

    Attributes:
        fingerprint: Equal for two runs that computed the same, whatever their data.
        inputs: The tensors it takes from outside, and for each whether it is a leaf with a gradient.
        calls: Its calls in their order; arguments that are inputs are `Input`.
        ends: Where its loss and its outputs come from.
        unseen: Name of an operation that no call shows, such as a custom Function; then it cannot be run again.
    """

    fingerprint: tuple[object, ...]
    inputs: list[tuple[Tensor, bool]]
    calls: list[Call]
    ends: list[Origin]
    unseen: str | None


def build(calls: Sequence[Call], ends: Sequence[Origin], unseen: str | None) -> Program:
    """Take from all calls those that `ends` depend on, and number what they take from outside."""
    kept = needed(calls, ends)
    made = {number for call in kept for number in call.results}
    inputs = _Inputs(made)
    mine = [
        call._replace(args=mapped(inputs.lifted(call), inputs), kwargs=mapped(call.kwargs, inputs)) for call in kept
    ]
    last = [mapped(end, inputs) for end in ends]
    unseen = unseen or next((t.grad_fn.name() for t, _ in inputs.tensors if t.grad_fn is not None), None)
    keys = [(c.function, c.settings, _key(c.args), _key(c.kwargs), c.metadata) for c in mine]
    # Numbers of results count all calls, also those left out here: counted anew, logging makes no other program.
    order = {number: i for i, number in enumerate(n for call in mine for n in call.results)}
    fingerprint = tuple(_renumbered(part, order) for part in (tuple(keys), tuple(last), tuple(inputs.metadata), unseen))
    return Program(fingerprint, inputs.tensors, mine, last, unseen)


def needed(calls: Sequence[Call], ends: Sequence[Origin]) -> list[Call]:
    """Return the calls that loss and outputs depend on, by their results or by what they wrote.

    A tensor that does not depend on the parameters is an input, and how it was made does not matter, unless a call
    that is needed writes to it. Random numbers are drawn in any case, so that others get what they got.
    """
    kept: list[Call] = []
    results: set[int] = set()
    inactive: set[int] = set()
    read: set[int] = set()
    written: set[int] = set()

    def need(value: object) -> None:
        for origin in _origins_in(value):
            if isinstance(origin, Result):
                results.add(origin.number)
            elif isinstance(origin, External):
                read.add(origin.storage)
                if origin.made_by is not None:
                    inactive.add(origin.made_by)

    need(list(ends))
    for call in reversed(calls):
        makes = not results.isdisjoint(call.results)
        changes = not read.isdisjoint(call.written)
        begins = not inactive.isdisjoint(call.results) and not written.isdisjoint(call.storages)
        if makes or changes or begins or call.random:
            kept.append(call)
            need([call.args, call.kwargs])
            read |= call.storages
            written |= call.written
    return kept[::-1]


class _Inputs:
    """Numbers what a program takes from outside as its calls are gone through."""

    def __init__(self, made: set[int]) -> None:
        self._made = made
        self._numbers: dict[tuple[int, bool], int] = {}
        self.tensors: list[tuple[Tensor, bool]] = []
        self.metadata: list[object] = []

    def __call__(self, value: object) -> object:
        if not isinstance(value, External):
            return value
        if value.made_by in self._made:
            return Result(value.made_by, active=False)
        key = (id(value.tensor), value.metadata.requires_grad)
        if key not in self._numbers:
            self._numbers[key] = self._add(value.tensor, value.metadata.requires_grad, value.metadata)
        return Input(self._numbers[key])

    def lifted(self, call: Call) -> tuple[object, ...]:
        """A call's arguments, with numbers that may vary turned into inputs."""
        if call.function not in ARITHMETIC:
            return call.args
        return tuple(self._lift(arg) if _may_vary(arg) else arg for arg in call.args)

    def _lift(self, number: float) -> Input:
        # As wide as Python's own; beside a tensor with dimensions its type does not count, as a number's does not.
        tensor = torch.tensor(number, dtype=torch.float64 if isinstance(number, float) else torch.int64, device="cpu")
        return Input(self._add(tensor, False, (type(number),)))

    def _add(self, tensor: Tensor, requires_grad: bool, metadata: object) -> int:
        self.tensors.append((tensor, requires_grad))
        self.metadata.append(metadata)
        return len(self.tensors) - 1


def _may_vary(arg: object) -> TypeGuard[float]:
    return type(arg) is float or (type(arg) is int and arg not in SMALL_INTEGERS)


def mapped(value: object, function: Callable[[object], object]) -> Any:
    """Apply a function to everything in nested lists, tuples, dictionaries and slices, which keep their form."""
    if isinstance(value, Origin):
        return function(value)
    if type(value) is list or type(value) is tuple:
        return type(value)([mapped(item, function) for item in value])
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*[mapped(item, function) for item in value])
    if isinstance(value, dict):
        return {key: mapped(item, function) for key, item in value.items()}
    if isinstance(value, slice):
        return slice(*[mapped(item, function) for item in (value.start, value.stop, value.step)])
    return function(value)


def _origins_in(value: object) -> list[Origin]:
    found: list[Origin] = []
    mapped(value, lambda leaf: found.append(leaf) if isinstance(leaf, Origin) else None)
    return found


def _key(value: object) -> object:
    """Something hashable that equals the key of an equivalent argument in another run."""
    if isinstance(value, Origin):
        return value
    if isinstance(value, (list, tuple)):
        return (type(value), *map(_key, value))
    if isinstance(value, dict):
        return (dict, *((key, _key(item)) for key, item in value.items()))
    if isinstance(value, slice):
        return (slice, _key(value.start), _key(value.stop), _key(value.step))
    # NumPy data become constants of the program.
    if hasattr(value, "tobytes") and hasattr(value, "dtype") and hasattr(value, "shape"):
        return (type(value), str(value.dtype), value.shape, value.tobytes())
    if isinstance(value, float):
        return (float, value.hex())  # so that one NaN equals another
    try:
        hash(value)
    except TypeError:
        return object()  # equal to nothing, so never mistaken for another
    return (type(value), value)


def _renumbered(value: object, order: dict[int, int]) -> object:
    if isinstance(value, Result):
        return Result(order[value.number], value.active)
    return tuple(_renumbered(item, order) for item in value) if type(value) is tuple else value
