"""What a closure may do while a step evaluates it: it differentiates into nothing, and what it writes can be undone."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import Enum, auto
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.overrides import TorchFunctionMode

from latephase.random_state import rewind


class Kind(Enum):
    """What a torch function does that an evaluation has to know of."""

    PLAIN = auto()
    BACKWARD = auto()
    GRAD_READ = auto()
    GRAD_WRITE = auto()
    WRITES_FIRST = auto()
    REPLACES_DATA = auto()
    UPDATES_STATISTICS = auto()
    RENORMS_EMBEDDING = auto()


_KINDS: dict[object, Kind] = {
    Tensor.backward: Kind.BACKWARD,
    torch.autograd.backward: Kind.BACKWARD,
    Tensor.grad.__get__: Kind.GRAD_READ,  # type: ignore[union-attr]
    Tensor.grad.__set__: Kind.GRAD_WRITE,  # type: ignore[union-attr]
    Tensor.grad.__delete__: Kind.GRAD_WRITE,  # type: ignore[union-attr]
    Tensor.data.__set__: Kind.REPLACES_DATA,  # type: ignore[attr-defined]
    Tensor.__setitem__: Kind.WRITES_FIRST,
    Tensor.requires_grad_: Kind.PLAIN,
    F.batch_norm: Kind.UPDATES_STATISTICS,
    F.instance_norm: Kind.UPDATES_STATISTICS,
    F.embedding: Kind.RENORMS_EMBEDDING,
    F.embedding_bag: Kind.RENORMS_EMBEDDING,
}
_OPERATORS = ("add", "and", "floordiv", "mod", "mul", "or", "pow", "sub", "truediv", "xor")
_IN_PLACE_OPERATORS = {f"__i{name}__" for name in _OPERATORS}


def kind(function: object) -> Kind:
    """What a torch function does."""
    found = _KINDS.get(function)
    if found is None:
        name = getattr(function, "__name__", "")
        in_place = name in _IN_PLACE_OPERATORS or (name.endswith("_") and not name.endswith("__"))
        found = _KINDS[function] = Kind.WRITES_FIRST if in_place else Kind.PLAIN
    return found


class _Place(NamedTuple):
    """A tensor, its values as they lie in memory, a copy of them, and how often the tensor had been written to then."""

    tensor: Tensor
    values: Tensor
    before: Tensor
    version: int | None

    def now(self) -> _Place:
        """The same place with its present values."""
        return self._replace(before=self.values.clone(), version=version_of(self.tensor))


def version_of(tensor: Tensor) -> int | None:
    """How often a tensor was written to; None where that is not counted."""
    return None if tensor.is_inference() else tensor._version


def put_back(values: Tensor, before: Tensor, tensor: Tensor, version: int | None) -> None:
    """Copy values into a tensor, and let autograd count as it did when it held them.

    So a graph that saved the tensor then can be used whenever the tensor holds these values again.
    """
    values.data.copy_(before)
    if version is not None:
        torch._C._autograd._unsafe_set_version_counter((tensor,), (version,))


class WriteLog:
    """What lay where a closure wrote to tensors from outside, and where generators stood that it drew from."""

    def __init__(self) -> None:
        # A place is a storage, where in it a tensor begins, and how far it reaches. Last in, first put back.
        self._places: dict[tuple[int, int, int], _Place] = {}
        self._replaced: dict[int, tuple[Tensor, Tensor]] = {}
        self._generators: dict[int, tuple[object, Callable[[], None]]] = {}

    def before_write(self, tensor: Tensor) -> None:
        """Keep the values of a tensor."""
        if not is_plain(tensor):
            return
        reach = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        place = storage_of(tensor), int(tensor.storage_offset()), reach
        if place not in self._places and tensor.numel() > 0:
            values = tensor.data.as_strided((reach,), (1,), tensor.storage_offset())
            self._places[place] = _Place(tensor, values, values.clone(), version_of(tensor))

    def before_replacement(self, tensor: Tensor) -> None:
        """Keep the place where a tensor's data lie."""
        self._replaced.setdefault(id(tensor), (tensor, tensor.data))

    def before_draw(self, generator: object) -> None:
        """Keep where a generator stands."""
        back = rewind(generator)
        if back is not None:
            self._generators.setdefault(id(generator), (generator, back))

    def after(self) -> WriteLog:
        """The same places and generators as they are now."""
        now = WriteLog()
        now._places = {key: place.now() for key, place in self._places.items()}
        now._replaced = {key: (tensor, tensor.data) for key, (tensor, _) in self._replaced.items()}
        for generator, _ in self._generators.values():
            now.before_draw(generator)
        return now

    def restore(self, but: frozenset[int] = frozenset()) -> None:
        """Put back everything that was kept, except in the storages `but`."""
        for tensor, data in self._replaced.values():
            tensor.data = data
        for place in reversed([place for (storage, *_), place in self._places.items() if storage not in but]):
            put_back(place.values, place.before, place.tensor, place.version)
        for _, back in self._generators.values():
            back()

    def touches(self, tensors: Iterable[Tensor]) -> bool:
        """Whether one of the tensors was written to."""
        storages = {storage for storage, *_ in self._places}
        return bool(self) and any(id(t) in self._replaced or storage_of(t) in storages for t in tensors)

    def __bool__(self) -> bool:
        return bool(self._places or self._replaced)


class Watch(TorchFunctionMode):
    """Run a closure as a step's evaluation.

    `backward` is skipped and the parameters seem to have no `.grad`, which lets an ordinary training closure serve
    as it is: the caller differentiates the loss that it returns. Before a write the log takes what was there.

    Args:
        parameters: Those the step optimizes.
        log: Takes what is about to be overwritten.

    Attributes:
        differentiated: What `backward` was called on, unless with a `gradient` of the closure's own.
    """

    def __init__(self, parameters: Sequence[Tensor], log: WriteLog) -> None:
        super().__init__()
        self._parameters = {id(p) for p in parameters}
        self._log = log
        self._new: set[int | None] = {None}
        self.skipped_backward = False
        self.differentiated: list[Tensor] = []
        self._weighted = False

    def __enter__(self) -> Watch:
        super().__enter__()
        # Compiled code would not be seen. It is there only if the compiler has been imported.
        if "torch._dynamo" in sys.modules:
            self._eager = torch.compiler.set_stance("force_eager")
            self._eager.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        if hasattr(self, "_eager"):
            self._eager.__exit__(*exc)
        super().__exit__(*exc)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        what = kind(func)
        kwargs = kwargs or {}
        if what is Kind.BACKWARD:
            self.skipped_backward = True
            self._notice_backward(args, kwargs)
            return None
        if what in (Kind.GRAD_READ, Kind.GRAD_WRITE) and id(args[0]) in self._parameters:
            return self._grad(what, args)
        if what is Kind.REPLACES_DATA:
            self._log.before_replacement(args[0])
        else:
            for tensor in _written(what, args, kwargs):
                if self._is_from_outside(tensor):
                    self._log.before_write(tensor)
        if kwargs.get("generator") is not None:
            self._log.before_draw(kwargs["generator"])
        result = func(*args, **kwargs)
        self._notice_new(result, args)
        return result

    def _notice_backward(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Remember what is differentiated; nothing once a pass is weighted, when it is no sum of these tensors."""
        weights = args[1:2], kwargs.get("gradient"), kwargs.get("grad_tensors")
        self._weighted |= any(True for _ in tensors_in(list(weights)))
        self.differentiated += tensors_in(args[:1] or [kwargs.get("tensors")])
        if self._weighted:
            self.differentiated.clear()

    def _is_from_outside(self, tensor: Tensor) -> bool:
        """Whether a tensor was there before the closure was called; its own results are its own affair."""
        return tensor.grad_fn is None and _storage_or_none(tensor) not in self._new

    def _notice_new(self, result: object, args: tuple[object, ...]) -> None:
        """Remember the storages of results that are no views of what was there before; those with a graph are none."""
        for tensor in tensors_in(result):
            if not tensor.requires_grad and not tensor._is_view():
                storage = _storage_or_none(tensor)
                if storage not in {_storage_or_none(given) for given in tensors_in(args)}:
                    self._new.add(storage)

    def _grad(self, what: Kind, args: tuple[object, ...]) -> None:
        """A parameter's `.grad`, which is None here, and which only None may be assigned to."""
        if what is Kind.GRAD_READ:
            # Clipping would do nothing then, in silence; that `zero_grad` finds nothing is as it should be.
            if self.skipped_backward and _name_of_reader() != "zero_grad":
                raise RuntimeError(
                    "the closure reads the .grad of a parameter after backward(), to clip or edit it perhaps, which "
                    "has no influence here: the step differentiates the loss that the closure returns, and .grad stays "
                    "None in it. Put the edit into the loss, register a hook on the parameter (p.register_hook), or "
                    "give the step a gradient of your own: opt.step(closure, grad=...). To log it, read .grad after "
                    "the step; damping and line search keep steps short without clipping"
                )
        elif len(args) > 1 and args[1] is not None:
            raise RuntimeError(
                "the closure assigns to the .grad of a parameter, which has no influence here: the step differentiates "
                "the loss that the closure returns. Return (loss, outputs) and leave .grad alone; a gradient of your "
                "own goes into opt.step(closure, grad=...)"
            )


def _name_of_reader() -> str:
    """The name of the function whose access to a tensor is being handled."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_name in ("_grad", "__torch_function__"):
        frame = frame.f_back
    return frame.f_code.co_name


def _written(what: Kind, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Tensor]:
    """The tensors that a call is going to write to."""
    if what is Kind.WRITES_FIRST or kwargs.get("inplace"):
        yield from tensors_in(args[:1])
    elif what is Kind.UPDATES_STATISTICS:
        yield from tensors_in([*args[1:3], kwargs.get("running_mean"), kwargs.get("running_var")])
    elif what is Kind.RENORMS_EMBEDDING and _max_norm(args, kwargs) is not None:
        yield from tensors_in([*args[:2], kwargs.get("weight")])
    if "out" in kwargs:
        yield from tensors_in([kwargs["out"]])


def _max_norm(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return args[3] if len(args) > 3 else kwargs.get("max_norm")


def tensors_in(value: object) -> Iterator[Tensor]:
    """All tensors in nested lists, tuples and dictionaries, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors_in(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors_in(item)


def is_plain(tensor: Tensor) -> bool:
    """Whether a tensor has strides and memory of its own: it is neither sparse nor wrapped by `torch.func`."""
    return tensor.layout is torch.strided and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)


def storage_of(tensor: Tensor) -> int:
    """A number that two tensors share if their values lie in the same memory, for as long as one of them lives."""
    return int(tensor.untyped_storage()._cdata)


def _storage_or_none(tensor: Tensor) -> int | None:
    return storage_of(tensor) if is_plain(tensor) else None


def function_modes() -> list[TorchFunctionMode]:
    """The modes that are active, the innermost last."""
    return torch.overrides._get_current_function_mode_stack()


def leave_function_modes(depth: int) -> None:
    """Leave all but the outermost `depth` modes: an interrupt can fall while a context is entered or left."""
    for mode in reversed(function_modes()[depth:]):
        mode.__exit__(None, None, None)
