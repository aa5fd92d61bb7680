"""Which way to compute products: the best of several rungs that works for the closure, and is seen to be right.

The choice is made at the first use of a program, from whether a rung can be had and passes its ladder's check; it is
remembered for the process. It depends on the code alone, never on timings, so a resumed run makes the same choice.
"""

from __future__ import annotations

import math
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from typing import Any, NamedTuple, Protocol

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from latephase.curvature.autograd_graph import custom_functions
from latephase.curvature.linearize import Options
from latephase.curvature.point import Point
from latephase.curvature.verify import rounding

REMEMBERED_CHOICES = 64


class CurvatureError(RuntimeError):
    """No rung gives products for this closure; the message names the operations in the way."""


class CurvatureWarning(UserWarning):
    """Products are right, but perhaps not what was meant."""


class Remark(str, Enum):
    """What the user should know of products that are right; the value is a sentence for people."""

    PAST_OUTPUTS = (
        "the loss also depends on the parameters in a way that does not lead through the outputs that the closure "
        "returned; that part is in the gradient, but not in the GGN. Return everything that the loss is computed from, "
        "and put weight decay into the optimizer"
    )
    NOT_REPEATABLE = (
        "the closure gave another loss when it was called again at the same parameters: it draws data or random "
        "numbers that a step cannot put back (a data loader, a generator of its own), so that the quadratic model and "
        "the trial points are of different problems. Draw them before the step"
    )
    NO_CURVATURE = (
        "the loss has no second derivative in the outputs at this point (absolute values, a hinge, Huber far from the "
        "targets): the GGN is zero, and a step goes along the gradient"
    )


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


class Rung(NamedTuple):
    """One way to compute products.

    Attributes:
        name: Its name, for people.
        prepare: From a point to a builder for all points of its program; what is costly happens here.
        narrows: Whether its products can work in a narrower type.
    """

    name: str
    prepare: Callable[[Point, Options], Builder]
    narrows: bool = False


class Verdict(NamedTuple):
    """What a check says of an engine that it found to be right.

    Attributes:
        remarks: What the user should know.
        gain: ‖Jᵀu‖ / ‖u‖ for a random u, by which later checks know how large rounding may be.
    """

    remarks: tuple[Remark, ...] = ()
    gain: float = 0.0


class Choice(NamedTuple):
    """The rung that was chosen, its builder, and why the rungs above were not.

    Attributes:
        rung: Its name.
        build: Makes an engine at a point of the program.
        options: How it computes.
        refusals: Why others were not chosen, by name.
        remarks: What the user should know of the products.
        gain: See :class:`Verdict`.
        needs_graph: Whether an engine can only be built, and checked, where a point has its graph.
    """

    rung: str
    build: Builder
    options: Options
    refusals: dict[str, str]
    remarks: tuple[Remark, ...]
    gain: float
    needs_graph: bool


class Ladder(NamedTuple):
    """Rungs, the best first, and what holds an engine against the closure.

    Attributes:
        name: Its name.
        rungs: The rungs.
        check: Raises an error unless an engine is right at a point, where its program is used for the first time;
            returns what there is to say of it.
        check_again: Raises an error unless an engine is right at a later point.
    """

    name: str
    rungs: Sequence[Rung]
    check: Callable[[Any, Point, Options], Verdict]
    check_again: Callable[[Any, Point, Choice], None]


_choices: OrderedDict[Any, Choice] = OrderedDict()


def remembered(ladder: Ladder, point: Point, options: Options) -> Choice | None:
    """The choice that was made for a point's program before, if any."""
    return _choices.get(_key(ladder, point, options))


def climb(ladder: Ladder, point: Point, options: Options) -> tuple[Any, Choice]:
    """Return an engine at ``point`` by the best rung that works, and how it was chosen.

    A remembered choice that fails at this point is made anew.

    Raises:
        CurvatureError: If there is none.
    """
    key = _key(ladder, point, options)
    choice = _choices.get(key)
    failures: dict[str, str] = {}
    if choice is not None:
        _choices.move_to_end(key)
        try:
            engine = choice.build(point)
            ladder.check_again(engine, point, choice)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            failures[f"{choice.rung}, as remembered"] = said(error)
        else:
            return engine, choice
    return _chosen(ladder, point, options, key, ladder.rungs, failures)


def step_down(ladder: Ladder, point: Point, options: Options, choice: Choice, error: Exception) -> tuple[Any, Choice]:
    """Return an engine by a rung below that of ``choice``, which failed at a product.

    Raises:
        CurvatureError: If there is none.
    """
    names = [rung.name for rung in ladder.rungs]
    below = ladder.rungs[1 + next(i for i, name in enumerate(names) if choice.rung.startswith(name)) :]
    failures = {**choice.refusals, choice.rung: f"in a product, {said(error)}"}
    return _chosen(ladder, point, options, _key(ladder, point, options), below, failures)


def _key(ladder: Ladder, point: Point, options: Options) -> Any:
    # A parameter that the closure does not use is in no call, but a program has to know of it.
    leaves = tuple((q.shape, q.dtype, q.device, bool(q._backward_hooks)) for q in point.leaves)
    return ladder.name, options, leaves, point.program.fingerprint


def _chosen(
    ladder: Ladder, point: Point, options: Options, key: Any, rungs: Sequence[Rung], failures: dict[str, str]
) -> tuple[Any, Choice]:
    """Choose among ``rungs``, remember the choice, and say what there is to say of it."""
    _choices.pop(key, None)
    point.restore_graph()
    point.refuse_reentrant_checkpoints()
    point.refuse_what_was_made_before()
    if point.gradient_pieces is None:
        point.gradient(retain_graph=True)
    engine, choice = _first_use(ladder, point, options, rungs, failures)
    _choices[key] = choice
    while len(_choices) > REMEMBERED_CHOICES:
        _choices.popitem(last=False)
    for remark in choice.remarks:
        warnings.warn(remark.value, CurvatureWarning, stacklevel=2)
    return engine, choice


def _first_use(
    ladder: Ladder, point: Point, options: Options, rungs: Sequence[Rung], failures: dict[str, str]
) -> tuple[Any, Choice]:
    refusals = dict(failures)
    for name, rung, chosen in _attempts(rungs, options):
        try:
            build = rung.prepare(point, chosen)
            engine = build(point)
            found, gain = ladder.check(engine, point, chosen)
            remarks = (*found, *_repeatability(point))
        except torch.OutOfMemoryError:  # noqa: PERF203 — a handful of rungs, once per program
            raise
        except Exception as error:
            refusals[name] = said(error)
        else:
            needs_graph = engine.needs_graph or Remark.PAST_OUTPUTS in remarks
            return engine, Choice(name, build, chosen, refusals, remarks, gain, needs_graph)
    raise CurvatureError(
        "this closure has no curvature products:\n"
        + "\n".join(f"  {name}: {reason}" for name, reason in refusals.items())
        + _suspects(point)
        + "\nReplace the operation named above by one with a second derivative (EmbeddingBag by Embedding and a sum, "
        "cdist by explicit differences), or give the step your own mvp"
    )


def _repeatability(point: Point) -> list[Remark]:
    """Whether the closure computes the same loss again."""
    loss, again = (float(one.loss.detach()) for one in (point, point.evaluated_again()))
    same = abs(again - loss) <= rounding(point) * abs(loss) or not math.isfinite(loss)
    return [] if same else [Remark.NOT_REPEATABLE]


def said(error: Exception) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"


def _suspects(point: Point) -> str:
    """Name what has derivatives of somebody's own."""
    names = custom_functions(point.loss)
    hooks = any(p._backward_hooks for p in point.leaves)
    said = f"\nThe closure uses custom autograd Functions: {', '.join(names)}" if names else ""
    return said + ("\nA parameter has a gradient hook; a hook must be linear in the gradient" if hooks else "")


def _attempts(rungs: Sequence[Rung], options: Options) -> Iterator[tuple[str, Rung, Options]]:
    """The rungs in their order, those that can work in a narrower type first in that type if it is asked for."""
    for rung in rungs:
        if options.product_dtype is not None and rung.narrows:
            yield f"{rung.name}, products in {options.product_dtype}", rung, options
        yield rung.name, rung, options._replace(product_dtype=None)


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
