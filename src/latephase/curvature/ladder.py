"""Which way to compute products: the best of several rungs that works for the closure, and is seen to be right.

The choice is made at the first use of a program, from whether a rung can be had and passes its ladder's check; it is
remembered for the process. It depends on the code alone, never on timings, so a resumed run makes the same choice.
"""

from __future__ import annotations

import math
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Generic, NamedTuple, TypeVar

import torch

from latephase.curvature.autograd_graph import custom_functions
from latephase.curvature.engines.engine import Engine
from latephase.curvature.options import Options
from latephase.curvature.point import Point
from latephase.curvature.verify import rounding

REMEMBERED_CHOICES = 64


class CurvatureError(RuntimeError):
    """No rung gives products for this closure; the message names the operations in the way.

    >>> from latephase.curvature import ggn
    >>> theta = torch.nn.Parameter(torch.ones(2))
    >>> def forward():
    ...     outputs = 2.0 * theta
    ...     outputs.register_hook(lambda gradient: -gradient)
    ...     return outputs.square().sum(), outputs
    >>> ggn(forward, [theta])
    Traceback (most recent call last):
    latephase.curvature.ladder.CurvatureError: an output has a gradient hook, ...
    """


class CurvatureWarning(UserWarning):
    """Products are right, but perhaps not what was meant.

    >>> from latephase.curvature import ggn
    >>> warnings.simplefilter("error", CurvatureWarning)
    >>> theta = torch.nn.Parameter(torch.ones(2))
    >>> def forward():
    ...     outputs = 2.0 * theta
    ...     return outputs.abs().sum(), outputs
    >>> ggn(forward, [theta])
    Traceback (most recent call last):
    latephase.curvature.ladder.CurvatureWarning: the loss has no second derivative in the outputs ...
    """


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


E = TypeVar("E", bound=Engine)

# From a point to an engine there. It is remembered, and used again at other points of the same program.
EngineAt = Callable[[Point], E]

Key = tuple[object, ...]


@dataclass(frozen=True, eq=False)
class Rung(Generic[E]):
    """One way to compute products.

    Attributes:
        name: Its name, for people.
        build: From a point to what makes engines at all points of its program; what is costly happens here.
        narrows: Whether its products can work in a narrower type.
    """

    name: str
    build: Callable[[Point, Options], EngineAt[E]]
    narrows: bool = False


class Verdict(NamedTuple):
    """What a check says of an engine that it found to be right.

    Attributes:
        remarks: What the user should know.
        gain: ‖Jᵀu‖ / ‖u‖ for a random u, by which later checks know how large rounding may be.
    """

    remarks: tuple[Remark, ...] = ()
    gain: float = 0.0


@dataclass(frozen=True, eq=False)
class Choice(Generic[E]):
    """The rung that was chosen, what it built, and why the rungs above were not.

    Attributes:
        rung: The rung.
        engine_at: Makes an engine at a point of the program.
        options: How it computes.
        refusals: Why others were not chosen, by name.
        remarks: What the user should know of the products.
        gain: See `Verdict`.
        needs_graph: Whether an engine can only be built, and checked, where a point has its graph.
    """

    rung: Rung[E]
    engine_at: EngineAt[E]
    options: Options
    refusals: dict[str, str]
    remarks: tuple[Remark, ...]
    gain: float
    needs_graph: bool

    @property
    def name(self) -> str:
        """The rung's name and, where it is a narrower one, the type that products work in."""
        return _name(self.rung, self.options)


# What was chosen by whatever ladder for the programs of this process, the last used at the end.
_choices: OrderedDict[tuple[object, Key], Choice[Any]] = OrderedDict()


class Ladder(Generic[E]):
    """Rungs, and what holds an engine against the closure.

    Attributes:
        rungs: The rungs, the best first.
        check: Raises an error unless an engine is right at a point, where its program is used for the first time;
            returns what there is to say of it.
        check_again: Raises an error if an engine is seen to be wrong at a later point, before its first product.
    """

    def __init__(
        self,
        rungs: Sequence[Rung[E]],
        check: Callable[[E, Point, Options], Verdict],
        check_again: Callable[[E, Point, Choice[E]], None],
    ) -> None:
        self.rungs = rungs
        self.check = check
        self.check_again = check_again

    def remembered(self, point: Point, options: Options) -> Choice[E] | None:
        """The choice that was made for a point's program before, if any."""
        return _choices.get((self, _key(point, options)))

    def climb(self, point: Point, options: Options) -> tuple[E, Choice[E]]:
        """Return an engine at `point` by the best rung that works, and how it was chosen.

        A remembered choice that fails at this point is made anew.

        Raises:
            CurvatureError: If there is none.
            OutOfMemoryError: If the remembered one finds no memory, which no other choice would mend.
        """
        key = (self, _key(point, options))
        choice: Choice[E] | None = _choices.get(key)
        if choice is None:
            return self._chosen(point, options, self.rungs, {})
        _choices.move_to_end(key)
        try:
            engine = choice.engine_at(point)
            self.check_again(engine, point, choice)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            return self.choose_anew(point, options, choice, error)
        return engine, choice

    def choose_anew(self, point: Point, options: Options, choice: Choice[E], error: Exception) -> tuple[E, Choice[E]]:
        """Return an engine by the best rung that works, where what `choice` remembers is seen to be wrong.

        Raises:
            CurvatureError: If there is none.
        """
        return self._chosen(point, options, self.rungs, {f"{choice.name}, as remembered": said(error)})

    def step_down(self, point: Point, options: Options, choice: Choice[E], error: Exception) -> tuple[E, Choice[E]]:
        """Return an engine by a rung below that of `choice`, which failed at a product.

        Raises:
            CurvatureError: If there is none.
        """
        below = self.rungs[self.rungs.index(choice.rung) + 1 :]
        return self._chosen(point, options, below, {**choice.refusals, choice.name: f"in a product, {said(error)}"})

    def _chosen(
        self, point: Point, options: Options, rungs: Sequence[Rung[E]], failures: dict[str, str]
    ) -> tuple[E, Choice[E]]:
        """Choose among `rungs`, remember the choice, and say what there is to say of it."""
        key = (self, _key(point, options))
        _choices.pop(key, None)
        point.restore_graph()
        point.refuse_reentrant_checkpoints()
        point.refuse_what_was_made_before()
        if point.gradient_pieces is None:
            point.gradient(retain_graph=True)
        engine, choice = self._first_use(point, options, rungs, failures)
        _choices[key] = choice
        while len(_choices) > REMEMBERED_CHOICES:
            _choices.popitem(last=False)
        for remark in choice.remarks:
            warnings.warn(remark.value, CurvatureWarning, stacklevel=2)
        return engine, choice

    def _first_use(
        self, point: Point, options: Options, rungs: Sequence[Rung[E]], failures: dict[str, str]
    ) -> tuple[E, Choice[E]]:
        refusals = dict(failures)
        for rung, chosen in _attempts(rungs, options):
            try:
                engine_at = rung.build(point, chosen)
                engine = engine_at(point)
                found, gain = self.check(engine, point, chosen)
                remarks = (*found, *_repeatability(point))
            except torch.OutOfMemoryError:  # noqa: PERF203 — a handful of rungs, once per program
                raise
            except Exception as error:
                refusals[_name(rung, chosen)] = said(error)
            else:
                needs_graph = engine.needs_graph or Remark.PAST_OUTPUTS in remarks
                return engine, Choice(rung, engine_at, chosen, refusals, remarks, gain, needs_graph)
        raise _no_products(point, refusals)


def _key(point: Point, options: Options) -> Key:
    # A parameter that the closure does not use is in no call, but a program has to know of it.
    leaves = tuple((q.shape, q.dtype, q.device, bool(q._backward_hooks)) for q in point.leaves)
    return options, leaves, point.program.fingerprint


def _name(rung: Rung[E], options: Options) -> str:
    return rung.name if options.product_dtype is None else f"{rung.name}, products in {options.product_dtype}"


def _attempts(rungs: Sequence[Rung[E]], options: Options) -> Iterator[tuple[Rung[E], Options]]:
    """The rungs in their order, those that can work in a narrower type first in that type if it is asked for."""
    for rung in rungs:
        if options.product_dtype is not None and rung.narrows:
            yield rung, options
        yield rung, options._replace(product_dtype=None)


def _repeatability(point: Point) -> list[Remark]:
    """Whether the closure computes the same loss again."""
    loss, again = (float(one.loss.detach()) for one in (point, point.evaluated_again()))
    same = abs(again - loss) <= rounding(point) * abs(loss) or not math.isfinite(loss)
    return [] if same else [Remark.NOT_REPEATABLE]


def said(error: Exception) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"


def _no_products(point: Point, refusals: dict[str, str]) -> CurvatureError:
    return CurvatureError(
        "this closure has no curvature products:\n"
        + "\n".join(f"  {name}: {reason}" for name, reason in refusals.items())
        + _suspects(point)
        + "\nReplace the operation named above by one with a second derivative (EmbeddingBag by Embedding and a sum, "
        "cdist by explicit differences), or give the step your own mvp"
    )


def _suspects(point: Point) -> str:
    """Name what has derivatives of somebody's own."""
    names = custom_functions(point.loss)
    hooks = any(p._backward_hooks for p in point.leaves)
    said = f"\nThe closure uses custom autograd Functions: {', '.join(names)}" if names else ""
    return said + ("\nA parameter has a gradient hook; a hook must be linear in the gradient" if hooks else "")
