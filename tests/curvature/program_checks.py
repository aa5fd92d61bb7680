"""Hold the curvature of a random program against the truth: right, or refused by name, and nothing is left behind."""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.autograd.forward_ad as fw
from tests.curvature.networks import forget_choices
from tests.curvature.programs import USES, Program, Use, default_dtype, truth, vectors
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.overrides import _get_current_function_mode_stack
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from latephase.curvature import ggn, hessian

OPERATORS = {"ggn": ggn, "hessian": hessian}
REFUSALS = (RuntimeError, TypeError, ValueError)

Rows = list[list[float]]


class Refusal(NamedTuple):
    """An error with a message for the user."""

    reason: str


class Fault(NamedTuple):
    """An error that is none of the kinds that a user may see."""

    error: str


class Finding(NamedTuple):
    """What came of one product.

    Attributes:
        verdict: "right", "refused", "wrong" or "no reference".
        where: Which operator at which use.
        cause: Why it is not right, in words that are the same for like causes.
        details: What else there is to say.
    """

    verdict: str
    where: str
    cause: str = ""
    details: str = ""

    def __str__(self) -> str:
        return f"{self.verdict}: {self.where}: {self.cause} {self.details}".rstrip(" :")


class Report(NamedTuple):
    """What came of one program.

    Attributes:
        seed: Makes the program again.
        description: What it is made of.
        parts: The names of its parts.
        findings: One for each operator and use; others for what was left behind, and what differs in a fresh process.
    """

    seed: int
    description: str
    parts: tuple[str, ...]
    findings: tuple[Finding, ...]

    @property
    def wrong(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.verdict == "wrong"]

    @property
    def verdict(self) -> str:
        """The worst of the findings: wrong, refused, right, or no reference."""
        verdicts = {finding.verdict for finding in self.findings}
        return next((v for v in ("wrong", "refused", "right") if v in verdicts), "no reference")

    def __str__(self) -> str:
        lines = [f"seed {self.seed}: {self.description}"]
        return "\n".join(lines + [f"    {finding}" for finding in self.findings])


# ---------------------------------------------------------------------- one program


def check(seed: int, *, fresh: bool = True) -> Report:
    """Use a program three times and compare each product with the truth.

    Args:
        seed: The program.
        fresh: Whether to compare with a process in which the last use is the first.
    """
    program, findings = Program(seed), []
    truths = [truth(seed, use) for use in USES]
    forget_choices()
    for use, expected in zip(USES, truths, strict=True):
        for kind in OPERATORS:
            # In a thread of its own: what is left behind in a thread's state does not reach other products.
            result, left = _in_a_thread(_used, kind, program, use)
            where = f"{kind} at the {use.name}"
            findings.append(_judged(program, use, kind, where, result, getattr(expected, kind)))
            findings += [Finding("wrong", where, f"left behind: {what}") for what in left]
            if fresh and use is not USES[0]:
                findings += _history(program, where, result, elsewhere(seed, kind, use))
    names = tuple(part.name for part in program.parts)
    return Report(seed, program.description, names, tuple(findings))


def _used(kind: str, program: Program, use: Use) -> tuple[Tensor | Refusal | Fault, list[str]]:
    result = product(kind, program, use)
    return result, list(left_behind(program, use, result))


def product(kind: str, program: Program, use: Use) -> Tensor | Refusal | Fault:
    """What the operator makes of the program's vectors, shape (P, VECTORS)."""
    forward = program.at(use)
    V = vectors(program).to(program.dtype)
    with default_dtype(program.dtype), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return OPERATORS[kind](forward, program.params) @ V
        except REFUSALS as error:
            first = str(error).strip().splitlines()
            if isinstance(error, RecursionError) or not first:
                return Fault(repr(error))
            return Refusal(f"{type(error).__name__}: {_without_numbers(str(error))}")
        except Exception as error:  # whatever it is, it is the answer
            frame = traceback.extract_tb(error.__traceback__)[-1]
            return Fault(f"{type(error).__name__}: {error} ({Path(frame.filename).name}, line {frame.lineno})")


def _judged(program: Program, use: Use, kind: str, where: str, result: Any, expected: Tensor | str) -> Finding:
    if isinstance(result, Fault):
        return Finding("wrong", where, "error", result.error)
    if isinstance(result, Refusal):
        return Finding("refused", where, result.reason)
    if isinstance(expected, str):
        verdict = "no reference" if expected == "not finite" else "wrong"
        return Finding(verdict, where, f"computed, where there is no reference: {expected}")
    error = float((result.double() - expected).norm())
    allowed = _allowed(program, expected)
    if error <= allowed or error <= allowed + _from_rounding(program, use, kind, expected):
        return Finding("right", where)
    size = float(expected.norm())
    return Finding("wrong", where, "differs from the truth", f"by {error:.1e}, where the norm is {size:.1e}")


def _allowed(program: Program, expected: Tensor) -> float:
    precision = program.precision
    return precision.tolerance * float(expected.norm()) + precision.floor * float(vectors(program).norm())


def _from_rounding(program: Program, use: Use, kind: str, expected: Tensor) -> float:
    """What rounding of the parameters makes of the truth, and some more."""
    moved = [getattr(truth(program.seed, use, relative=program.precision.rounding, move=i), kind) for i in range(3)]
    return 30.0 * max(float((m - expected).norm()) if isinstance(m, Tensor) else 0.0 for m in moved)


# ---------------------------------------------------------------------- what is left behind


def left_behind(program: Program, use: Use, result: Any) -> Iterator[str]:
    """What is not as one call of the closure leaves it."""
    rng, buffers = torch.get_rng_state(), [b.clone() for b in program.model.buffers()]
    if not torch.is_grad_enabled():
        yield "gradients are disabled"
    if not (torch.ones(1, requires_grad=True) * 2.0).requires_grad:
        yield "operations have no gradients any more"
        return
    if _get_current_function_mode_stack() or _get_current_dispatch_mode_stack():
        yield "a mode"
    if fw._current_level != -1 or torch.is_autocast_enabled("cpu") or not torch.backends.mkldnn.enabled:
        yield "a setting"
    if any(p.grad is not None for p in program.params):
        yield "a gradient in .grad"
    if any(map(_is_stand_in, pytree.tree_leaves([program.world.log, *buffers, *program.model.parameters()]))):
        yield "a tensor without values in the closure's log"
    if isinstance(result, Tensor):  # a refusal may come before or after the closure ran
        _run_once(program, use)
        if not torch.equal(rng, torch.get_rng_state()):
            yield "random numbers are not as one call leaves them"
        if not all(torch.equal(a, b) for a, b in zip(buffers, program.model.buffers(), strict=True)):
            yield "buffers are not as one call leaves them"


def _run_once(program: Program, use: Use) -> None:
    calls_backward, program.calls_backward = program.calls_backward, False
    try:
        with default_dtype(program.dtype), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program.at(use)()
    finally:
        program.calls_backward = calls_backward


def _is_stand_in(value: Any) -> bool:
    if not isinstance(value, Tensor):
        return False
    wrapped = torch._C._functorch.is_functorch_wrapped_tensor(value) or torch._is_functional_tensor(value)
    return isinstance(value, FakeTensor) or value.is_meta or wrapped


# ---------------------------------------------------------------------- other threads and processes


def _in_a_thread(function: Callable, *args: Any) -> Any:
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(function, *args).result()


class Elsewhere:
    """A process beside this one, for first uses."""

    def __init__(self) -> None:
        self._pool: ProcessPoolExecutor | None = None

    def __call__(self, seed: int, kind: str, use: Use) -> Rows | Refusal | Fault:
        """The product when this use is the first."""
        if self._pool is None:
            self._pool = ProcessPoolExecutor(1, get_context("spawn"), torch.set_num_threads, (1,))
        try:
            return self._pool.submit(_first_use, seed, kind, use).result()
        except BrokenProcessPool:
            self._pool = None
            return Fault("the process died")

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None


elsewhere = Elsewhere()


def _first_use(seed: int, kind: str, use: Use) -> Rows | Refusal | Fault:
    forget_choices()
    result = _in_a_thread(lambda: product(kind, Program(seed), use))
    return result.tolist() if isinstance(result, Tensor) else result


def _history(program: Program, where: str, result: Any, fresh: Any) -> list[Finding]:
    """Whether it mattered that the program had been used before."""
    where = f"{where}, beside a fresh process"
    if isinstance(result, Tensor) and isinstance(fresh, list):
        expected = torch.tensor(fresh, dtype=torch.float64)
        error = float((result.double() - expected).norm())
        if error <= _allowed(program, expected):
            return []
        return [Finding("wrong", where, "differs", f"by {error:.1e}, where the norm is {float(expected.norm()):.1e}")]
    if isinstance(result, Refusal) and isinstance(fresh, list):
        return [Finding("refused", where, f"refused only because it was used before: {result.reason}")]
    if isinstance(result, Tensor) and isinstance(fresh, Refusal):
        return [Finding("refused", where, f"refused only in a fresh process: {fresh.reason}")]
    return [Finding("wrong", where, "error", fresh.error)] if isinstance(fresh, Fault) else []


@contextmanager
def closed_afterwards() -> Iterator[None]:
    try:
        yield
    finally:
        elsewhere.close()


def _without_numbers(message: str) -> str:
    """A message's first line (of a CurvatureError: its reasons), with digits replaced, so that like reasons are one."""
    lines = [line.strip() for line in message.strip().splitlines()]
    if lines[0].startswith("this closure has no curvature products") and len(lines) > 1:
        lines = [" / ".join(lines[1:-1])]
    return "".join("#" if c.isdigit() else c for c in lines[0])
