"""Which way to compute products: the best of several rungs that works for the closure, and is seen to be right.

1. *linearize*: trace once, then products at the price of a gradient.
2. *linearize, math kernels*: the same, traced with attention and recurrent layers in their elementary operations,
   because their fused kernels have no forward derivative.
3. *double-backward*: no trace, but the graph is kept and products cost more.
4. *double-backward, math kernels*.

The choice is made at the first use of a program, from whether a rung can be had and agrees with reverse
differentiation; it is remembered for the process. It depends on the code alone, never on timings, so a
resumed run makes the same choice.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from latephase.curvature.double_backward import DoubleBackward
from latephase.curvature.linearize import Linearization, Options, Program, pull_back, trace
from latephase.curvature.point import Point, evaluate

Engine = Linearization | DoubleBackward
Build = Callable[[Point, Options], tuple[Engine, Program | None]]

# What tracing and differentiating raise; anything else comes from the closure and is the user's to see.
REFUSALS = (RuntimeError, NotImplementedError, TypeError, ValueError, AssertionError)
REMEMBERED_PROGRAMS = 64


class CurvatureError(RuntimeError):
    """No rung gives products for this closure; the message names the operations in the way."""


class Choice(NamedTuple):
    """The rung that was chosen, its program where it has one, and why the rungs above were not."""

    rung: str
    program: Program | None
    refusals: dict[str, str]


_choices: OrderedDict[Any, Choice] = OrderedDict()


def climb(point: Point, options: Options) -> tuple[Engine, Choice]:
    """Return J, Jᵀ and H at ``point`` by the best rung that works, and how it was chosen.

    Raises:
        CurvatureError: If none does.
    """
    # A parameter that the closure does not use is in no call, but the program has to know of it.
    leaves = tuple((q.shape, q.dtype, q.device) for q in point.leaves)
    key = (options, leaves, tuple(point.places), point.record.fingerprint)
    choice = _choices.get(key)
    if choice is None:
        engine, choice = _first_use(point, options)
        _choices[key] = choice
        while len(_choices) > REMEMBERED_PROGRAMS:
            _choices.popitem(last=False)
    elif choice.program is not None:
        engine = Linearization(choice.program, point)
    else:
        engine = RUNGS[choice.rung](point, options)[0]
    _choices.move_to_end(key)
    return engine, choice


def _first_use(point: Point, options: Options) -> tuple[Engine, Choice]:
    point.refuse_reentrant_checkpoints()
    refusals: dict[str, str] = {}
    for rung, build, chosen in _attempts(options):
        try:
            engine, program = build(point, chosen)
            _verify(engine, point, chosen)
        except REFUSALS as error:  # noqa: PERF203 — a handful of rungs, once per program
            refusals[rung] = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
        else:
            return engine, Choice(rung, program, refusals)
    raise CurvatureError(
        "this closure has no curvature products:\n"
        + "\n".join(f"  {rung}: {reason}" for rung, reason in refusals.items())
        + "\nReplace the operation named above by one with a second derivative (EmbeddingBag by Embedding and a sum, "
        "cdist by explicit differences), or give the step your own mvp"
    )


def _attempts(options: Options) -> Iterator[tuple[str, Build, Options]]:
    """The rungs in their order, those that can work in a narrower type first in that type if it is asked for."""
    for rung, build in RUNGS.items():
        if options.product_dtype is not None and rung.startswith("linearize"):
            yield f"{rung}, products in {options.product_dtype}", build, options
        yield rung, build, options._replace(product_dtype=None)


def _verify(engine: Engine, point: Point, options: Options) -> None:
    """Hold an engine against reverse differentiation of the closure, as the gradient uses it."""
    tolerance = 0.0 if options.product_dtype is None else torch.finfo(options.product_dtype).eps ** 0.5
    if not engine.needs_graph:
        theirs = pull_back(point.outputs, point.leaves, engine.slopes)
        point.check("Jᵀu", engine.vjp(engine.slopes), theirs, tolerance)
    generator = torch.Generator(point.parameters.device).manual_seed(0)
    v = [torch.randn(q.shape, generator=generator, device=q.device).to(q.dtype) for q in point.leaves]
    Jv = engine.jvp(v)
    JTJv = engine.vjp(Jv)
    # ⟨Jv, Jv⟩ = ⟨v, JᵀJv⟩ holds for the true J alone, as v is random and Jᵀ has just been checked.
    point.check("vᵀJᵀJv", [_inner(Jv, Jv)], [_inner(v, JTJv)], tolerance)


def _inner(a: list[torch.Tensor], b: list[torch.Tensor]) -> torch.Tensor:
    return torch.stack([(x.double() * y.double()).sum() for x, y in zip(a, b, strict=True)]).sum()


def _linearize(point: Point, options: Options) -> tuple[Engine, Program]:
    program = trace(point, options)
    return Linearization(program, point), program


def _linearize_with_math_kernels(point: Point, options: Options) -> tuple[Engine, Program]:
    with math_kernels():
        return _linearize(point, options)


def _double_backward(point: Point, options: Options) -> tuple[Engine, None]:
    return DoubleBackward(point), None


def _double_backward_with_math_kernels(point: Point, options: Options) -> tuple[Engine, None]:
    with math_kernels(), point.again():
        again = evaluate(point.forward, point.parameters, point.again)
    return DoubleBackward(again), None


RUNGS: dict[str, Build] = {
    "linearize": _linearize,
    "linearize, math kernels": _linearize_with_math_kernels,
    "double-backward": _double_backward,
    "double-backward, math kernels": _double_backward_with_math_kernels,
}


@contextmanager
def math_kernels() -> Iterator[None]:
    """Compute attention and recurrent layers by elementary operations, which have all derivatives."""
    mkldnn = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch._C._set_mkldnn_enabled(mkldnn)
