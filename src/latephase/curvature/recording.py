"""Watch a closure run, and keep what it did as a program that can be run again without it.

The program is the list of torch functions that the closure called on its way from the parameters to loss and outputs.
Everything else it did (reading values, branching, logging, preparing data) has left its traces in the arguments of
those calls: as constants, or as tensors that the program takes from outside.
"""

from __future__ import annotations

import functools
import types
import weakref
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.autograd.graph import Node
from torch.overrides import TorchFunctionMode

from latephase.curvature.autograd_graph import is_custom, newest_node, parameter_below
from latephase.curvature.inferred import ConvexCalls
from latephase.curvature.loss_hessians import FORMS, LossCall
from latephase.curvature.program import Call, External, Metadata, Parameter, Program, Result, build, mapped
from latephase.curvature.settings import Settings
from latephase.random_state import rng_state
from latephase.watching import is_plain, storage_of, tensors_in, version_of

Function = Callable[..., object]
INDEXING = (Tensor.__getitem__, Tensor.__setitem__)
FUNCTIONS = (types.FunctionType, types.MethodType, functools.partial, torch.nn.Module)


class Recording(TorchFunctionMode):
    """Keeps every torch function that is called, with its arguments and where their tensors came from.

    Args:
        parameters: The parameters, P entries in all.
        convex_calls: Notices calls of convex functions.

    Attributes:
        loss_calls: The calls of known loss functions.
        start: The number of the newest node of autograd's graph when the recording began.
    """

    def __init__(self, parameters: Sequence[Tensor], convex_calls: ConvexCalls) -> None:
        super().__init__()
        self._parameters, self._convex_calls = parameters, convex_calls
        self._known: dict[int, tuple[weakref.ref[Tensor], Parameter | Result]] = {
            id(p): (weakref.ref(p), Parameter(i, Metadata.of(p))) for i, p in enumerate(parameters)
        }
        self._places: dict[tuple[Node, int], Result] = {}  # in autograd's graph
        self._calls: list[Call] = []
        self._results = 0
        self.start = newest_node()
        self._unseen: str | None = None
        self.loss_calls: list[LossCall] = []

    def program(self, loss: Tensor, outputs: Sequence[Tensor]) -> Program:
        """What led from the parameters to a loss and outputs."""
        ends = [self._origin(tensor) for tensor in (loss, *outputs)]
        return build(self._calls, ends, self._unseen)

    def __torch_function__(
        self, func: Function, kinds: object, args: tuple[object, ...] = (), kwargs: dict[str, object] | None = None
    ) -> object:
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunction():  # what is asked here, nobody needs to see
            given = list(tensors_in([args, kwargs]))
            # Every tensor replaced by where it came from; no container is shared.
            known = _indexing_by_tensors(args) if func in INDEXING else args
            origins = mapped(known, self._traced), mapped(kwargs, self._traced)
            versions = [version_of(t) for t in given]
            stream = None if any(t.requires_grad for t in given) else rng_state(self._parameters[0].device)
        result = func(*args, **kwargs)
        with torch._C.DisableTorchFunction():
            results = list(tensors_in(result))
            written = [t for t, version in zip(given, versions, strict=True) if version_of(t) != version]
            if stream is None and _calls_back(args, kwargs):
                self._unseen = self._unseen or f"{getattr(func, '__name__', func)} with a Python function"
            if results or written:
                self._keep(func, origins, given, results, written, random=stream is not None and self._moved(stream))
            if func in FORMS and isinstance(result, Tensor) and result.requires_grad:
                self.loss_calls.append(LossCall(func, args, kwargs, result))
            self._convex_calls.notice(func, args, kwargs, result)
        return result

    def _keep(
        self,
        func: Function,
        origins: tuple[tuple[object, ...], dict[str, object]],
        given: list[Tensor],
        results: list[Tensor],
        written: list[Tensor],
        random: bool,
    ) -> None:
        active = torch.is_grad_enabled() and any(t.requires_grad for t in (*results, *written))
        numbers = tuple(range(self._results, self._results + len(results)))
        self._calls.append(
            Call(
                func,
                *origins,
                Settings.now(func),
                numbers,
                tuple(Metadata.of(t) for t in results),
                frozenset(map(_storage, written)),
                frozenset(map(_storage, (*given, *results))),
                active,
                random,
            )
        )
        self._results += len(results)
        for number, tensor in zip(numbers, results, strict=True):
            self._known[id(tensor)] = (weakref.ref(tensor), Result(number, tensor.requires_grad))
            if tensor.grad_fn is not None:
                self._places[tensor.grad_fn, tensor.output_nr] = Result(number)

    def _moved(self, stream: list[Tensor]) -> bool:
        return not all(map(torch.equal, stream, rng_state(self._parameters[0].device)))

    def _traced(self, leaf: object) -> object:
        return self._origin(leaf) if isinstance(leaf, Tensor) else leaf

    def _origin(self, tensor: Tensor) -> Parameter | Result | External:
        known = self._known.get(id(tensor))
        origin = known[1] if known is not None and known[0]() is tensor else self._original(tensor.grad_fn)
        if tensor.grad_fn is not None and (origin is None or is_custom(tensor.grad_fn)):
            self._notice(tensor.grad_fn)
        if isinstance(origin, Parameter) or (isinstance(origin, Result) and origin.active):
            return origin
        return External(tensor, None if origin is None else origin.number, Metadata.of(tensor), _storage(tensor))

    def _original(self, node: Node | None) -> Parameter | Result | None:
        """What a tensor is that no call returned, where it only sees another as of another class (`as_subclass`)."""
        if node is None:
            return None
        below, place = node, (node, 0)
        while place not in self._places and below.name() == "AliasBackward0":
            next_node, number = below.next_functions[0]
            if next_node is None:
                return None
            below, place = next_node, (next_node, number)
        if below is node:
            return None
        leaf = self._known.get(id(getattr(below, "variable", None)))
        return self._places.get(place) if leaf is None else leaf[1]

    def _notice(self, node: Node) -> None:
        """Remember that a tensor has a graph that no recorded call has made."""
        if node._sequence_nr() > self.start:
            self._unseen = self._unseen or node.name().removesuffix("Backward")
        else:
            refuse_made_before(parameter_below(node, self._parameters))


def _indexing_by_tensors(args: tuple[object, ...]) -> tuple[object, ...]:
    """The arguments of an indexing with tensors for lists of numbers, of which each call would make tensors anew."""
    tensor, index, *rest = args
    each = index if isinstance(index, tuple) else (index,)
    made = tuple(_indexing_tensor(i) if isinstance(i, list) else i for i in each)
    return tensor, made if isinstance(index, tuple) else made[0], *rest


def _indexing_tensor(index: list[object]) -> object:
    kinds = {type(i) for i in index}
    if kinds == {bool}:  # as positions: how many there are is then known from its shape
        return torch.tensor([position for position, chosen in enumerate(index) if chosen], dtype=torch.int64)
    return torch.tensor(index) if kinds == {int} else index


def refuse_made_before(p: Tensor | None) -> None:
    """Raise RuntimeError for a tensor that was computed from the parameter `p` before the closure was called."""
    if p is not None:
        raise RuntimeError(
            f"the loss depends on the parameter of shape {tuple(p.shape)} through a tensor that was computed from it "
            "before the closure was called, which trial points cannot reach; compute everything that depends on "
            "parameters inside the closure"
        )


def _calls_back(args: tuple[object, ...], kwargs: dict[str, object]) -> bool:
    """Whether a Python function is among the arguments of a call: a hook, a distance, …."""
    return any(isinstance(arg, FUNCTIONS) for arg in (*args, *kwargs.values()))


def _storage(tensor: Tensor) -> int:
    return storage_of(tensor) if is_plain(tensor) else id(tensor)
