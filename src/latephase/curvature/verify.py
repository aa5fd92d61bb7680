"""Checks of derivatives: each is held against another way to compute the same thing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from latephase.curvature.autograd_graph import custom_functions
from latephase.curvature.point import Point
from latephase.curvature.pull_back import partial_derivatives, pull_back
from latephase.trial_points import at_trial_point

Product = Callable[[list[Tensor]], list[Tensor]]

# No seed that anyone draws weights from: a direction that equals them is special for scale-invariant networks.
DIRECTION, COTANGENT = 0x6C61746550686173, 0x6570726F62657321


class DisagreementError(RuntimeError):
    """Two ways to compute the same thing gave different results."""


def check(
    point: Point,
    name: str,
    mine: Sequence[Tensor | None],
    theirs: Sequence[Tensor | None],
    tolerance: float = 0.0,
    cancelled: float = 0.0,
) -> None:
    """Hold two computations against each other: they must agree, relative to their norm, up to rounding.

    Args:
        point: Where they were made; its types decide what rounding is.
        name: What was computed.
        mine: One result.
        theirs: The other.
        tolerance: At least this much is allowed besides that of `rounding`.
        cancelled: The norm of what the results are a sum of, where it may be much larger than theirs: towards a minimum
            the gradient is small, and its rounding is not.

    Raises:
        DisagreementError: If they do not.
    """
    # All tensors together: one of them may be zero but for rounding, like the gradient of a bias before BatchNorm.
    error, size = difference_and_norm(mine, theirs)
    # Values that are not finite pass: nothing can be said of them, and a step looks for them itself.
    if error > max(tolerance, rounding(point)) * (size + cancelled):
        raise DisagreementError(f"two computations of {name} differ by {error:.1e}, where the norm is {size:.1e}")


def agree_closely(point: Point, mine: Sequence[Tensor], theirs: Sequence[Tensor], tolerance: float = 0.0) -> bool:
    """Return whether scalars agree relative to each one's own size, halfway between rounding and what `check` allows.

    Where one is zero, or not finite, it says nothing, and they do not.
    """
    one, other = torch.stack(list(mine)), torch.stack(list(theirs))
    close = max(tolerance, rounding(point)) ** 1.5
    return bool(((one - other).abs() < close * other.abs()).all())


def difference_and_norm(mine: Sequence[Tensor | None], theirs: Sequence[Tensor | None]) -> tuple[float, float]:
    """Return ‖mine − theirs‖ and ‖theirs‖; None is zero."""
    parts = []
    for a, b in zip(mine, theirs, strict=True):
        if a is not None or b is not None:
            one, other = (None if x is None else _real(x) for x in (a, b))
            off = other if one is None else one if other is None else one - other
            assert off is not None
            parts.append(torch.stack([_norm(off), _norm(torch.zeros_like(off) if other is None else other)]))
    norms = torch.stack(parts).square().sum(dim=0).sqrt().tolist() if parts else [0.0, 0.0]
    return norms[0], norms[1]


def _norm(tensor: Tensor) -> Tensor:
    return torch.linalg.vector_norm(tensor).double()


def rounding(point: Point) -> float:
    """The square root of the coarsest rounding in play, relative: far above rounding, far below an error."""
    return coarsest(point) ** 0.5


def coarsest(point: Point) -> float:
    """The coarsest machine precision in play."""
    dtypes = {t.dtype for t in (*point.leaves, *point.outputs) if t.is_floating_point() or t.is_complex()}
    dtypes.update(dtype for call in point.program.calls for _, dtype in call.settings.autocast)
    eps = max(torch.finfo(dtype).eps for dtype in dtypes)
    if point.parameters.device.type == "cuda" and torch.backends.cudnn.allow_tf32:
        eps = max(eps, 2.0**-10)
    return eps


def gain(point: Point, vjp: Product) -> float:
    """‖Jᵀu‖ / ‖u‖ for a random u: how large Jᵀu is where nothing cancels."""
    u = point.random_outputs(COTANGENT)
    return norm(vjp(u)) / norm(u)


def norm(tensors: Sequence[Tensor | None]) -> float:
    """The norm of several tensors as one vector; None is zero."""
    return float(torch.stack([_norm(_real(t)) for t in tensors if t is not None]).square().sum().sqrt())


def inner(a: Sequence[Tensor | None], b: Sequence[Tensor | None]) -> Tensor:
    """Return ⟨a, b⟩ as a float64; complex numbers count as pairs of real ones, None as zero."""
    pairs = [(_real(x), _real(y)) for x, y in zip(a, b, strict=True) if x is not None and y is not None]
    return torch.stack([x.reshape(-1).dot(y.reshape(-1)).double() for x, y in pairs]).sum()


def check_transposed(point: Point, jvp: Product, vjp: Product, tolerance: float) -> None:
    """Hold J against its transpose: ⟨u, Jv⟩ = ⟨Jᵀu, v⟩ for random v and u.

    Where Jᵀ is known to be right this holds for the true J alone. With u near Jv no side is small by chance; the random
    part of u finds a J that is zero where Jᵀ is not, as by a backward pass without a graph.
    """
    v = point.random_direction(DIRECTION)
    Jv = jvp(v)
    noise = point.random_outputs(COTANGENT)
    size = norm(Jv)
    scale = 0.5 * size / norm(noise) if size > 0.0 else 1.0
    u = [a + (scale * b).to(a.dtype) for a, b in zip(Jv, noise, strict=True)]
    check(point, "uᵀJv", [inner(u, Jv)], [inner(vjp(u), v)], tolerance)


def check_loss_hessian(point: Point, hvp: Product) -> None:
    """Hold H against differences of the slopes ∂loss/∂outputs, where a custom Function may have no second derivative.

    Between two points on either side of θ the outputs differ by dz and the slopes by about H dz.

    Raises:
        DisagreementError: If they do not; it names the custom Functions.
    """
    names = custom_functions(point.loss)
    if not names:
        return
    (z, slopes), (z_, slopes_) = (_outputs_and_slopes(point, side) for side in (1.0, -1.0))
    dz, ds = ([a - b for a, b in zip(*pair, strict=True)] for pair in ((z, z_), (slopes, slopes_)))
    _check_difference(point, "the Hessian of the loss in the outputs", hvp(dz), ds, slopes, names)


def check_hessian(point: Point, derivative: Product) -> None:
    """The same for products with the Hessian of the loss in the parameters, held against differences of gradients."""
    names = custom_functions(point.loss)
    if not names:
        return
    above, below = (_gradient(point, side) for side in (1.0, -1.0))
    v = [2.0 * _step_size(point) * d for d in point.random_direction(DIRECTION)]
    dg = [a - b for a, b in zip(above, below, strict=True)]
    _check_difference(point, "the Hessian", derivative(v), dg, above, names)


def _check_difference(
    point: Point, what: str, mine: list[Tensor], difference: list[Tensor], size: list[Tensor], names: list[str]
) -> None:
    noise = 20.0 * coarsest(point) * norm(size)
    off, whole = difference_and_norm(mine, difference)
    if off > 0.2 * whole + noise:
        raise DisagreementError(
            f"{what} disagrees with differences of first derivatives ({off:.1e} where the norm is {whole:.1e}): the "
            f"backward pass of {', '.join(names)} may have no graph of its own (once_differentiable, or a gradient "
            "saved in forward; write it with torch operations), or compute something else than a derivative"
        )


def _outputs_and_slopes(point: Point, side: float) -> tuple[list[Tensor], list[Tensor]]:
    with _displaced(point, side) as other:
        slopes = partial_derivatives([other.loss], other.outputs, [torch.ones_like(other.loss)])
        # Copies: an output may be a parameter, which is about to go back.
        return [z.detach().clone() for z in other.outputs], [s.detach() for s in slopes]


def _gradient(point: Point, side: float) -> list[Tensor]:
    with _displaced(point, side) as other:
        return pull_back([other.loss], other.leaves, [torch.ones_like(other.loss)])


@contextmanager
def _displaced(point: Point, side: float) -> Iterator[Point]:
    """The closure at a point beside θ, for as long as its derivatives are taken."""
    parameters = point.parameters
    theta, v = parameters.read(), parameters.join(_through_hooks(point, point.random_direction(DIRECTION)))
    with at_trial_point(parameters, theta + side * _step_size(point) * v, theta):
        other = point.evaluated_again()
        with other.evaluation.as_left():
            yield other


def _through_hooks(point: Point, v: list[Tensor]) -> list[Tensor]:
    """What the parameters' gradient hooks make of a vector; products with the Hessian apply them on both sides."""
    result = []
    for p, piece in zip(point.leaves, v, strict=True):
        for hook in (p._backward_hooks or {}).values():
            changed = hook(piece)
            piece = piece if changed is None else changed
        result.append(piece)
    return result


def _step_size(point: Point) -> float:
    """The cube root of the precision, relative to θ, where errors of rounding and of curvature balance."""
    theta = point.parameters.read()
    scale = max(float(theta.norm()) / max(point.parameters.numel, 1) ** 0.5, 1e-3)
    return float(coarsest(point) ** (1.0 / 3.0) * scale)


def _real(tensor: Tensor) -> Tensor:
    """Without a graph, dense, real (complex numbers as pairs), and at least float32."""
    dense = tensor.detach()
    dense = dense.to_dense() if dense.is_sparse else dense
    dense = torch.view_as_real(dense.resolve_conj()) if dense.is_complex() else dense
    return dense.to(torch.promote_types(dense.dtype, torch.float32))
