"""Which outputs a loss is taken of, where a closure returns the loss alone.

From the loss back through what is linear (means, sums, weights, masks) until calls of convex losses are met: what they
are taken of are the outputs. So the loss is a convex function of them, and JᵀHJ has no negative curvature. Anything
else on the way is refused by name, and nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.autograd.graph import Node

from latephase.curvature.loss_hessians import FORMS
from latephase.watching import tensors_in

Function = Callable[..., object]

# Convex in their first argument, with curvature there.
LOSSES: frozenset[Function] = frozenset({
    *FORMS, F.smooth_l1_loss, F.soft_margin_loss, F.multilabel_soft_margin_loss, F.gaussian_nll_loss, F.softplus,
    torch.logsumexp, Tensor.logsumexp,
})  # fmt: skip
LOG_SOFTMAX: frozenset[Function] = frozenset({F.log_softmax, torch.log_softmax, Tensor.log_softmax})
# Concave likewise: their negatives are losses.
CONCAVE: frozenset[Function] = frozenset({*LOG_SOFTMAX, F.logsigmoid})
# Linear in their first argument, or convex in a poor way: they are taken of what this one was made of by another call.
BY_WAY_OF: dict[Function, tuple[frozenset[Function], str]] = {
    F.nll_loss: (LOG_SOFTMAX, "log_softmax"),
    F.kl_div: (LOG_SOFTMAX, "log_softmax"),
    F.binary_cross_entropy: (frozenset({torch.sigmoid, Tensor.sigmoid, F.sigmoid}), "sigmoid"),
}
POWERS: frozenset[Function] = frozenset({torch.pow, Tensor.pow, Tensor.__pow__})
SQUARES: frozenset[Function] = frozenset({torch.square, Tensor.square})
PRODUCTS: frozenset[Function] = frozenset({torch.mul, Tensor.mul, Tensor.__mul__, torch.dot, Tensor.dot})
INNER: frozenset[Function] = frozenset().union(*(functions for functions, _ in BY_WAY_OF.values()))

# Nodes of autograd's graph that are linear in what they are given; products and quotients where one side is a constant.
_LINEAR = """
    Add Alias Cat Clone Div Dot Expand Gather Index IndexSelect MaskedFill MaskedSelect Mean Mul NanToNum Neg NllLoss
    NllLoss2D Permute ReshapeAlias Rsub Select Slice Squeeze Stack Sub Sum T ToCopy Transpose Unbind UnsafeView
    Unsqueeze View Where
"""
LINEAR = frozenset(f"{name}Backward{number}" for name in _LINEAR.split() for number in range(4))
OF_TWO_FACTORS = ("MulBackward", "DivBackward", "DotBackward")


class ConvexCall(NamedTuple):
    """A call of a convex function (or a concave one), what it was taken of, and its result."""

    name: str
    outputs: Tensor
    result: Tensor
    concave: bool = False


class Inferred(NamedTuple):
    """The outputs that were found, and how, in words; or none, and why."""

    outputs: list[Tensor]
    words: str


class ConvexCalls:
    """Notices calls of convex functions while a closure runs."""

    def __init__(self) -> None:
        self._calls: list[ConvexCall] = []
        self._inner: list[tuple[Function, Tensor, Tensor]] = []
        self._refused: dict[Node | None, str] = {}

    def notice(self, func: Function, args: Sequence[object], kwargs: dict[str, object], result: object) -> None:
        """Take note of a call, if it is one of those."""
        if not isinstance(result, Tensor) or not result.requires_grad:
            return
        first = args[0] if args else kwargs.get("input")
        if not isinstance(first, Tensor):
            return
        if func in INNER:
            self._inner.append((func, first, result))
        if func in CONCAVE:
            self._calls.append(ConvexCall(getattr(func, "__name__", str(func)), first, result, concave=True))
        elif func in LOSSES or func in BY_WAY_OF:
            self._loss(func, first, [*args[1:], kwargs], result)
        elif (
            func in SQUARES
            or (func in POWERS and _exponent(args, kwargs) == 2.0)
            or (func in PRODUCTS and len(args) > 1 and args[1] is first)
        ):
            self._calls.append(ConvexCall("square", first, result))

    def _loss(self, func: Function, first: Tensor, rest: list[object], result: Tensor) -> None:
        name = getattr(func, "__name__", str(func))
        others = [t for t in tensors_in(rest) if t.requires_grad and t is not first]
        if others:
            self._refused[result.grad_fn] = f"{name} is given targets or weights that depend on parameters themselves"
        elif func not in BY_WAY_OF:
            self._calls.append(ConvexCall(name, first, result))
        else:
            functions, inner = BY_WAY_OF[func]
            made = next((a for f, a, made in self._inner if made is first and f in functions), None)
            if made is None and functions is LOG_SOFTMAX:
                return  # linear in its input, which may be a part of a log_softmax
            if made is None:
                self._refused[result.grad_fn] = f"{name} is not taken of the result of {inner}"
            else:
                self._calls.append(ConvexCall(f"{inner} and {name}", made, result))

    def infer(self, loss: Tensor) -> Inferred:
        """Return the outputs of a loss that has a graph."""
        ends = {(call.result.grad_fn, call.result.output_nr): call for call in self._calls}
        found: dict[int, ConvexCall] = {}
        seen: set[tuple[Node | None, int]] = set()
        stack = [(loss.grad_fn, loss.output_nr)]
        while stack:
            edge = stack.pop()
            if edge in seen:
                continue
            seen.add(edge)
            if edge in ends:
                found[id(ends[edge])] = ends[edge]
                continue
            node = edge[0]
            assert node is not None
            reason = self._refused.get(node) or _in_the_way(node)
            if reason:
                return Inferred([], reason)
            stack += [(below, nr) for below, nr in node.next_functions if below is not None]
        calls = [call for call in self._calls if id(call) in found]
        if not _convex(loss, calls):
            return Inferred([], "a convex loss enters with a negative weight, or a concave one with a positive")
        outputs = list({id(call.outputs): call.outputs for call in calls}.values())
        names = ", ".join(dict.fromkeys(call.name for call in calls))
        shapes = ", ".join(str(tuple(z.shape)) for z in outputs)
        return Inferred(outputs, f"what {names} {'was' if len(calls) == 1 else 'were'} taken of, of shape {shapes}")


def _exponent(args: Sequence[object], kwargs: dict[str, object]) -> float | None:
    exponent = args[1] if len(args) > 1 else kwargs.get("exponent")
    return float(exponent) if isinstance(exponent, (int, float)) else None


def _in_the_way(node: Node) -> str:
    """Why the outputs are not beyond this node; empty if they may be."""
    name = node.name()
    if name == "torch::autograd::AccumulateGrad" or name.endswith("AccumulateGrad"):
        return "a parameter enters the loss without a square or another convex loss in between"
    if name not in LINEAR:
        return f"{name.removesuffix('0').removesuffix('1').removesuffix('Backward')} is neither linear nor a known loss"
    if name.startswith(OF_TWO_FACTORS) and sum(below is not None for below, _ in node.next_functions) > 1:
        return f"{name.partition('Backward')[0]} of two tensors that depend on parameters is not convex"
    if name.startswith("DivBackward") and node.next_functions[0][0] is None:
        return "Div by what depends on parameters is not convex"
    return ""


def _convex(loss: Tensor, calls: Sequence[ConvexCall]) -> bool:
    """Whether no call enters with the wrong sign; what is between is linear, so weights are constants."""
    own = next((call for call in calls if call.result is loss), None)
    if own is not None:
        return not own.concave
    weights = torch.autograd.grad(loss, [call.result for call in calls], retain_graph=True)
    signed = (-weight if call.concave else weight for weight, call in zip(weights, calls, strict=True))
    return all(bool((weight >= 0.0).all()) for weight in signed)
