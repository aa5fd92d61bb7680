"""A closure's recorded calls as a program: what is needed of them, what makes two alike, and how to run one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from latephase.watching import tensors_in

Metadata = tuple[Any, ...]

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


# Where normalisations take what they normalise, their weight and their bias.
NORMALISATIONS: dict[Any, tuple[int, ...]] = {
    F.layer_norm: (0, 2, 3),
    F.group_norm: (0, 2, 3),
    F.batch_norm: (0, 3, 4),
    F.instance_norm: (0, 3, 4),
    torch.layer_norm: (0, 2, 3),
    torch.group_norm: (0, 2, 3),
    torch.batch_norm: (0, 1, 2),
    torch.instance_norm: (0, 1, 2),
    torch.native_layer_norm: (0, 2, 3),
    torch.native_batch_norm: (0, 1, 2),
}


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


class Settings(NamedTuple):
    """What besides its arguments decides what a call computes."""

    grad: bool
    autocast: tuple[tuple[str, torch.dtype], ...]
    attention: tuple[bool, ...] | None

    @classmethod
    def now(cls, function: Callable[..., Any]) -> Settings:
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


class Call(NamedTuple):
    """One call of a torch function.

    Attributes:
        function: The function.
        args: Its arguments; tensors are replaced by :class:`Parameter`, :class:`Result` or :class:`External`.
        kwargs: Likewise.
        settings: What else decides what it computes.
        results: Numbers of the tensors it returned.
        metadata: Their shapes and the like.
        written: The storages it wrote to.
        storages: Those of all its arguments and results.
        active: Whether what it returned or wrote to depends on parameters (or on another leaf with a gradient).
        random: Whether it drew random numbers, and is not active.
    """

    function: Callable[..., Any]
    args: Any
    kwargs: Any
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
        calls: Its calls in their order; arguments that are inputs are :class:`Input`.
        ends: Where its loss and its outputs come from.
        unseen: Name of an operation that no call shows, such as a custom Function; then it cannot be run again.
    """

    fingerprint: tuple[Any, ...]
    inputs: list[tuple[Tensor, bool]]
    calls: list[Call]
    ends: list[Any]
    unseen: str | None


def build(calls: Sequence[Call], ends: Sequence[Any], unseen: str | None) -> Program:
    """Take from all calls those that ``ends`` depend on, and number what they take from outside."""
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
    fingerprint = _renumbered((tuple(keys), tuple(last), tuple(inputs.metadata), unseen), order)
    return Program(fingerprint, inputs.tensors, mine, last, unseen)


def needed(calls: Sequence[Call], ends: Sequence[Any]) -> list[Call]:
    """The calls that loss and outputs depend on, by their results or by what they wrote.

    A tensor that does not depend on the parameters is an input, and how it was made does not matter, unless a call
    that is needed writes to it. Random numbers are drawn in any case, so that others get what they got.
    """
    kept: list[Call] = []
    results: set[int] = set()
    inactive: set[int] = set()
    read: set[int] = set()
    written: set[int] = set()

    def need(value: Any) -> None:
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
        self._numbers: dict[Any, int] = {}
        self.tensors: list[tuple[Tensor, bool]] = []
        self.metadata: list[Any] = []

    def __call__(self, value: Any) -> Any:
        if not isinstance(value, External):
            return value
        if value.made_by in self._made:
            return Result(value.made_by, active=False)
        requires_grad = value.metadata[-1]
        key = (id(value.tensor), requires_grad)
        if key not in self._numbers:
            self._numbers[key] = self._add(value.tensor, requires_grad, value.metadata)
        return Input(self._numbers[key])

    def lifted(self, call: Call) -> Any:
        """A call's arguments, with numbers that may vary turned into inputs."""
        if call.function not in ARITHMETIC:
            return call.args
        return tuple(self._lift(arg) if _may_vary(arg) else arg for arg in call.args)

    def _lift(self, number: float) -> Input:
        # As wide as Python's own; beside a tensor with dimensions its type does not count, as a number's does not.
        tensor = torch.tensor(number, dtype=torch.float64 if isinstance(number, float) else torch.int64, device="cpu")
        return Input(self._add(tensor, False, (type(number),)))

    def _add(self, tensor: Tensor, requires_grad: bool, metadata: Metadata) -> int:
        self.tensors.append((tensor, requires_grad))
        self.metadata.append(metadata)
        return len(self.tensors) - 1


def _may_vary(arg: Any) -> bool:
    return type(arg) is float or (type(arg) is int and arg not in SMALL_INTEGERS)


def replay(
    program: Program,
    parameters: Sequence[Tensor],
    inputs: Sequence[Tensor],
    beside_moving: Callable[[Tensor], Tensor] = lambda tensor: tensor,
) -> list[Tensor]:
    """Run a program; return its loss and its outputs. No code of the closure's author runs.

    Args:
        program: What to run.
        parameters: Stand-ins for the parameters.
        inputs: Stand-ins for its inputs.
        beside_moving: What to do to an input that a normalisation takes beside others that may be moving.
    """
    results: dict[int, Tensor] = {}

    def value(origin: Any) -> Any:
        if isinstance(origin, Parameter):
            return parameters[origin.number]
        if isinstance(origin, Result):
            return results[origin.number]
        return inputs[origin.number] if isinstance(origin, Input) else origin

    def beside(origin: Any) -> Any:
        tensor = value(origin)
        return beside_moving(tensor) if isinstance(origin, Input) and tensor.is_floating_point() else tensor

    for call in program.calls:
        places = NORMALISATIONS.get(call.function, ())
        args = [mapped(arg, beside if i in places else value) for i, arg in enumerate(call.args)]
        names = ("input", "weight", "bias") if places else ()
        kwargs = {name: mapped(arg, beside if name in names else value) for name, arg in call.kwargs.items()}
        with call.settings.entered():
            returned = call.function(*args, **kwargs)
            if call.function is F.embedding:
                returned = _padded(returned, *args, **kwargs)
        results.update(zip(call.results, tensors_in(returned), strict=True))
    return [value(end) for end in program.ends]


def _padded(embedded: Tensor, indices: Tensor, weight: Tensor, padding_idx: int | None = None, **_: Any) -> Tensor:
    """Embeddings in which those of the padding are constants, as in the backward pass; forward mode forgets that."""
    if padding_idx is None:
        return embedded
    return torch.where((indices == padding_idx % weight.shape[0]).unsqueeze(-1), embedded.detach(), embedded)


ORIGINS = (Parameter, Result, External, Input)


def mapped(value: Any, function: Callable[[Any], Any]) -> Any:
    """Apply a function to everything in nested lists, tuples, dictionaries and slices."""
    if isinstance(value, ORIGINS):
        return function(value)
    if type(value) in (list, tuple):
        return type(value)([mapped(item, function) for item in value])
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*[mapped(item, function) for item in value])
    if isinstance(value, dict):
        return {key: mapped(item, function) for key, item in value.items()}
    if isinstance(value, slice):
        return slice(*[mapped(item, function) for item in (value.start, value.stop, value.step)])
    return function(value)


def _origins_in(value: Any) -> list[Any]:
    found: list[Any] = []
    mapped(value, lambda leaf: found.append(leaf) if isinstance(leaf, ORIGINS) else None)
    return found


def _key(value: Any) -> Any:
    """Something hashable that equals the key of an equivalent argument in another run."""
    if isinstance(value, ORIGINS):
        return value
    if isinstance(value, (list, tuple)):
        return (type(value), *map(_key, value))
    if isinstance(value, dict):
        return (dict, *((key, _key(item)) for key, item in value.items()))
    if isinstance(value, slice):
        return (slice, _key(value.start), _key(value.stop), _key(value.step))
    if hasattr(value, "tobytes"):  # NumPy data become constants of the program
        return (type(value), str(value.dtype), value.shape, value.tobytes())
    if isinstance(value, float):
        return (float, value.hex())  # so that one NaN equals another
    try:
        hash(value)
    except TypeError:
        return object()  # equal to nothing, so never mistaken for another
    return (type(value), value)


def _renumbered(value: Any, order: dict[int, int]) -> Any:
    if isinstance(value, Result):
        return Result(order[value.number], value.active)
    return tuple(_renumbered(item, order) for item in value) if type(value) is tuple else value


def metadata(tensor: Tensor) -> Metadata:
    """What a program minds of a tensor besides its values; the last entry is ``requires_grad``."""
    plain = tensor.layout is torch.strided and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)
    return (
        tensor.shape,
        tensor.stride() if plain else tensor.layout,
        tensor.dtype,
        tensor.device,
        tensor.requires_grad,
    )


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
