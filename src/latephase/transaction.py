"""What a step must not disturb: random numbers, buffers, attributes and whatever else its closures write to."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils.hooks import RemovableHandle

from latephase.parameters import Parameters
from latephase.random_state import RandomState, read_random_state, seed, set_rng_state, write_random_state
from latephase.snapshots import Attributes, Buffer, OptimizerState
from latephase.trial_points import put
from latephase.watching import Watch, WriteLog, function_modes, leave_function_modes, storage_of
from latephase.wrapped import Wrappers

Result = TypeVar("Result")
_C: Any = torch._C  # whose stubs lack what is used here


class _Functions:
    """What tensors of a class of their own make of functions, for a while.

    PyTorch's own guards put back what they found even where they are left late and in another order, as an interrupt
    may have it; here `settled` has the last word.
    """

    def __init__(self, state: object) -> None:
        self._state = state

    def __enter__(self) -> None:
        self._before = _C._get_torch_function_state()
        _C._set_torch_function_state(self._state)

    def __exit__(self, *error: object) -> None:
        _C._set_torch_function_state(self._before)


def as_they_are() -> _Functions:
    """Let tensors of a class of their own (PINA's have labels, say) be what they are, as the closure expects."""
    return _Functions(_C._TorchFunctionState.ENABLED)


def as_numbers() -> _Functions:
    """Take them for plain ones, as whatever is computed from them outside the closure expects."""
    return _Functions(_C._TorchFunctionState.SUBCLASSES_DISABLED)


class ParametersWrittenError(RuntimeError):
    """The closure wrote to parameters while it was evaluated at θ."""


class Left:
    """What an evaluation left behind: in the modules and tensors, in the random numbers, and θ if it wrote to it."""

    def __init__(self, random_state: RandomState, modules: list[Buffer | Attributes], writes: WriteLog) -> None:
        self.random_state = random_state
        self._modules = modules
        self._writes = writes
        self.theta: Tensor | None = None

    def enforce(self, but: frozenset[int]) -> None:
        """Put it back into modules and tensors, except into the storages `but`."""
        self._writes.restore(but)
        for one in self._modules:
            one.enforce()


class Evaluation:
    """One evaluation of a closure that is over, and undone; the graph that it built may still be used.

    A backward pass reads what the closure saved. Where that lies in tensors that were there before and that the closure
    wrote to (running statistics, say), it has to see them as the closure left them.

    Attributes:
        differentiated: What the closure called `backward` on, while it runs.
    """

    def __init__(self, transaction: Transaction, differentiated: list[Tensor]) -> None:
        self._transaction, self.differentiated = transaction, differentiated
        self.left: Left | None = None

    @contextmanager
    def as_left(self) -> Iterator[None]:
        """Let tensors hold what the evaluation left in them."""
        if self.left is None:
            yield
            return
        before, but = self._transaction.now(), self._transaction.storages
        self.left.enforce(but)
        try:
            yield
        finally:
            before.enforce(but)


class Repeat(NamedTuple):
    """How to repeat an evaluation.

    Attributes:
        closure: A context within which its closure may be run again as if for the first time: same random numbers,
            same buffers, and nothing left behind.
        draws: A context for what draws the same random numbers in its stead.
    """

    closure: Callable[[], AbstractContextManager[Evaluation]]
    draws: Callable[[], AbstractContextManager[None]]


class Transaction:
    """Make every evaluation of one step see the same network, and let the step be undone.

    Each evaluation starts from the random numbers, buffers, attributes and other tensors that the step found. What the
    *first* evaluation (a forward pass at θ on the model batch) did to them is the step's one canonical update: it is
    what `commit` leaves behind. Everything else is rolled back. Buffers and attributes are found as their
    modules are called, other tensors as they are written to.

    Args:
        parameters: The step's parameters, which hold θ.
        optimizer: Whose state and damping belong to the step too.

    Attributes:
        theta: θ, shape (P,).
        storages: The memory of the parameters, which is θ's affair.
    """

    def __init__(self, parameters: Parameters, optimizer: torch.optim.Optimizer | None = None) -> None:
        self._parameters = parameters
        self._optimizer = None if optimizer is None else OptimizerState(optimizer, parameters.tensors)
        self._device = parameters.device
        self.theta = parameters.read()
        self.storages = frozenset(storage_of(p) for p in parameters.tensors)
        self._start = read_random_state(self._device)
        self._found: list[Buffer | Attributes] = []
        self._seen: set[nn.Module] = set()
        self._writes = WriteLog()
        self._wrappers = Wrappers()
        self._after: Left | None = None
        self._hook: RemovableHandle | None = None

    @contextmanager
    def evaluation(self, micro_batch: int = 0) -> Iterator[Evaluation]:
        """Run one evaluation of the network.

        Args:
            micro_batch: Its number within its batch. Each number has its own random numbers, the same whenever
                it is evaluated in this step; number 0 continues the stream that the step found.

        Yields:
            The evaluation, which knows afterwards what the network looked like at its end.

        Raises:
            ParametersWrittenError: If this is the first evaluation, and it wrote to the parameters.
            RuntimeError: If the closure works on a `.grad` that it does not have here.
        """
        self._seed(micro_batch)
        _quieten_compiler_about_hooks()
        versions = [p._version for p in self._parameters.tensors]
        watch = Watch(self._parameters.tensors, self._writes)
        self._hook = register_module_forward_pre_hook(self._remember)
        first, evaluation = self._after is None, Evaluation(self, watch.differentiated)
        try:
            with watch, self._wrappers.quiet():
                yield evaluation
        finally:
            watch.differentiated.clear()  # they hold graphs
            written = self._parameters_written(versions)
            if self._writes or any(one.changed for one in self._found):
                evaluation.left = self.now()
            if first:
                self._after = evaluation.left or self.now()
                self._after.theta = self._parameters.read() if written else None
            self.rollback()
            self._recount(versions)
        if first and written:
            raise ParametersWrittenError

    @contextmanager
    def random_numbers(self, micro_batch: int = 0) -> Iterator[None]:
        """Draw the random numbers of an evaluation, without its closure."""
        self._seed(micro_batch)
        try:
            yield
        finally:
            set_rng_state(self._device, self._start.torch)

    def repeat(self, micro_batch: int = 0) -> Repeat:
        """How to repeat the evaluation of a micro-batch."""
        return Repeat(partial(self.evaluation, micro_batch), partial(self.random_numbers, micro_batch))

    def _seed(self, micro_batch: int) -> None:
        set_rng_state(self._device, self._start.torch)  # others may have drawn between the evaluations
        if micro_batch > 0:
            seed(self._device, int(torch.randint(2**62, (), device="cpu")) + micro_batch)

    def rollback(self, *, to_start: bool = False) -> None:
        """Leave everything as the step found it, and watch modules no longer.

        Args:
            to_start: Whether that is the end of it, also after a `commit`.
        """
        if self._hook is not None:
            self._hook.remove()
        write_random_state(self._device, self._start)
        self._writes.restore(self.storages)
        if to_start or self._writes.touches(self._parameters.tensors):
            put(self._parameters, self.theta)
        for one in self._found:
            one.enforce() if to_start else one.restore()
        if to_start and self._optimizer is not None:
            self._optimizer.restore()

    def commit(self) -> None:
        """Leave everything as the first evaluation left it."""
        if self._after is not None:
            write_random_state(self._device, self._after.random_state)
            self._after.enforce(self.storages)
            if self._after.theta is not None:
                put(self._parameters, self._after.theta)

    def now(self) -> Left:
        """What there is now of all that the evaluations changed so far."""
        again = [
            Buffer(one.module, one.name) if isinstance(one, Buffer) else Attributes(one.module) for one in self._found
        ]
        return Left(read_random_state(self._device), again, self._writes.after())

    def _recount(self, versions: list[int]) -> None:
        """Let autograd count the parameters' writes as before the evaluation, which are undone."""
        moved = [(p, v) for p, v in zip(self._parameters.tensors, versions, strict=True) if p._version != v]
        if moved:
            torch._C._autograd._unsafe_set_version_counter(*zip(*moved, strict=True))

    def _parameters_written(self, versions: list[int]) -> bool:
        tensors = self._parameters.tensors
        touched = self._writes.touches(tensors) or [p._version for p in tensors] != versions
        return touched and not torch.equal(self._parameters.read(), self.theta)

    def _remember(self, module: nn.Module, args: object) -> None:
        """Copy buffers and attributes of a module and its children before its first call."""
        if module in self._seen:
            return
        # Whoever watches the evaluation's operations is not to see these.
        with torch._C.DisableTorchFunction(), _disable_current_modes():
            for child in module.modules():
                if child not in self._seen:
                    self._seen.add(child)
                    for name, _ in child._buffers.items():  # noqa: PERF102 — TorchScript's look-alike has only this
                        self._found.append(Buffer(child, name))
                    if not self._wrappers.find(child) and not isinstance(child, torch.jit.ScriptModule):
                        self._found.append(Attributes(child))


def settled(
    parameters: Parameters,
    attempt: Callable[[Transaction], Result],
    *,
    optimizer: torch.optim.Optimizer | None = None,
    undone: Callable[[Result], bool] = lambda result: False,
) -> Result:
    """Run `attempt` within a transaction, and leave everything as its first evaluation did; or roll it back.

    Where its first evaluation writes to the parameters, as a data-dependent initialisation or an embedding with
    `max_norm` does, that is taken over as the canonical update, and the attempt is made once more from there.

    Args:
        parameters: The step's parameters.
        attempt: What to do.
        optimizer: Whose state and damping are part of what is rolled back.
        undone: Says of a result whether it is to leave nothing behind. So does an exception.

    Returns:
        What the attempt returned.

    Raises:
        RuntimeError: If it writes to the parameters again.
    """
    depth, functions = len(function_modes()), _C._get_torch_function_state()
    found = running = Transaction(parameters, optimizer)

    def undo() -> None:
        _C._set_torch_function_state(functions)
        leave_function_modes(depth)
        running.rollback()
        found.rollback(to_start=True)

    try:
        try:
            with as_numbers():
                result = attempt(found)
        except ParametersWrittenError:
            found.commit()
            running = Transaction(parameters)
            with as_numbers():
                result = attempt(running)
        undo() if undone(result) else running.commit()
        return result
    except BaseException as error:
        undo()
        if not isinstance(error, ParametersWrittenError):
            raise
    raise RuntimeError(
        "the closure writes to the parameters each time it is called, so that no step can be judged; move them between "
        "the steps instead"
    )


_ABOUT_HOOKS = r"Using `torch\.compile\(module\)` when there are global hooks"


def _quieten_compiler_about_hooks() -> None:
    """The compiler warns that a hook like ours may be called twice for one call of a module; it may be.

    The filter stays: taking it back would make Python show again each warning that it has shown once.
    """
    if "torch._dynamo" not in sys.modules:
        return
    if not any(message is not None and message.pattern == _ABOUT_HOOKS for _, message, *_ in warnings.filters):
        warnings.filterwarnings("ignore", message=_ABOUT_HOOKS)
