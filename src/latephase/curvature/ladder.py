"""Which way to compute products: the best of several rungs that works for the closure, and is seen to be right.

The choice is made at the first use of a program, from whether a rung can be had and passes its ladder's check; it is
remembered for the process. It depends on the code alone, never on timings, so a resumed run makes the same choice.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from latephase.curvature.linearize import Options
from latephase.curvature.point import Point

# What tracing and differentiating raise; anything else comes from the closure and is the user's to see.
REFUSALS = (RuntimeError, NotImplementedError, TypeError, ValueError, AssertionError)
REMEMBERED_CHOICES = 64


class CurvatureError(RuntimeError):
    """No rung gives products for this closure; the message names the operations in the way."""


class Engine(Protocol):
    """What a rung builds: linear maps at one point.

    Attributes:
        needs_graph: Whether the point's graph must stay.
    """

    needs_graph: bool

    def release(self) -> None:
        """Let go of what can be computed again."""


# From a point to an engine there. It is remembered, and used again at other points of the same program.
Builder = Callable[[Point], Any]
# From a point to a builder for all points of its program; what is costly happens here.
Rung = Callable[[Point, Options], Builder]


class Ladder(NamedTuple):
    """Rungs by name, the best first, and a check that raises an error unless an engine is right at a point."""

    name: str
    rungs: Mapping[str, Rung]
    check: Callable[[Any, Point, Options], None]


class Choice(NamedTuple):
    """The rung that was chosen, its builder, and why the rungs above were not."""

    rung: str
    build: Builder
    refusals: dict[str, str]


_choices: OrderedDict[Any, Choice] = OrderedDict()


def climb(ladder: Ladder, point: Point, options: Options) -> tuple[Any, Choice]:
    """Return an engine at ``point`` by the best rung that works, and how it was chosen.

    Raises:
        CurvatureError: If none does.
    """
    # A parameter that the closure does not use is in no call, but a program has to know of it.
    leaves = tuple((q.shape, q.dtype, q.device) for q in point.leaves)
    key = (ladder.name, options, leaves, tuple(point.places), point.record.fingerprint)
    choice = _choices.get(key)
    if choice is not None:
        _choices.move_to_end(key)
        return choice.build(point), choice
    engine, choice = _first_use(ladder, point, options)
    _choices[key] = choice
    while len(_choices) > REMEMBERED_CHOICES:
        _choices.popitem(last=False)
    return engine, choice


def _first_use(ladder: Ladder, point: Point, options: Options) -> tuple[Any, Choice]:
    point.refuse_reentrant_checkpoints()
    refusals: dict[str, str] = {}
    for name, rung, chosen in _attempts(ladder, options):
        try:
            build = rung(point, chosen)
            engine = build(point)
            ladder.check(engine, point, chosen)
        except REFUSALS as error:  # noqa: PERF203 — a handful of rungs, once per program
            refusals[name] = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
        else:
            return engine, Choice(name, build, refusals)
    raise CurvatureError(
        "this closure has no curvature products:\n"
        + "\n".join(f"  {name}: {reason}" for name, reason in refusals.items())
        + "\nReplace the operation named above by one with a second derivative (EmbeddingBag by Embedding and a sum, "
        "cdist by explicit differences), or give the step your own mvp"
    )


def _attempts(ladder: Ladder, options: Options) -> Iterator[tuple[str, Rung, Options]]:
    """The rungs in their order, those that can work in a narrower type first in that type if it is asked for."""
    for name, rung in ladder.rungs.items():
        if options.product_dtype is not None and name.startswith("linearize"):
            yield f"{name}, products in {options.product_dtype}", rung, options
        yield name, rung, options._replace(product_dtype=None)


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
