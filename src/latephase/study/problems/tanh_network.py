"""Fully connected tanh networks whose derivatives by the inputs come along in the forward pass."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Jet(NamedTuple):
    """A function and its derivatives at N points.

    Attributes:
        value: The function u, [N].
        slopes: ∂u/∂xᵢ for each of d inputs, [d, N].
        second: Σᵢ cᵢ ∂²u/∂xᵢ², with the coefficients that were asked for, [N].
    """

    value: Tensor
    slopes: Tensor
    second: Tensor


def propagate(layers: Sequence[nn.Linear], points: Tensor, coefficients: Sequence[float]) -> Jet:
    """Return the value and derivatives of the network that puts tanh between `layers`.

    All are propagated through the layers together, in one forward pass. That takes no automatic differentiation inside
    the forward pass, so whatever differentiates the network works here, too.

    Args:
        layers: The last has one output.
        points: Where, [N, d].
        coefficients: c₁ … c_d of the second-order operator. With zeros alone nothing is propagated for it.
    """
    *hidden, last = layers
    d = points.shape[1]
    value, slopes = points, torch.eye(d).to(points)[:, None].expand(d, len(points), d)
    second = torch.zeros_like(points)
    for layer in hidden:
        value, slopes = torch.tanh(layer(value)), slopes @ layer.weight.T
        derivative = 1 - value.square()  # of tanh; its second one is -2 · tanh · derivative
        if any(coefficients):
            bend = torch.stack([c * slopes[i].square() for i, c in enumerate(coefficients) if c]).sum(dim=0)
            second = derivative * (second @ layer.weight.T - 2 * value * bend)
        slopes = derivative * slopes
    at_end = (second @ last.weight.T)[:, 0] if any(coefficients) else torch.zeros_like(points[:, 0])
    return Jet(last(value)[:, 0], (slopes @ last.weight.T)[..., 0], at_end)


class TanhNetwork(nn.Module):
    """A fully connected network with tanh between its layers and one output.

    Args:
        widths: Of the inputs and the hidden layers.
    """

    def __init__(self, *widths: int) -> None:
        super().__init__()
        sizes = zip(widths, [*widths[1:], 1], strict=True)
        self.layers = nn.ModuleList(nn.Linear(into, out) for into, out in sizes)

    def forward(self, points: Tensor) -> Tensor:
        """Map [N, d] to [N]."""
        for layer in self._linear[:-1]:
            points = torch.tanh(layer(points))
        return self._linear[-1](points)[:, 0]

    def value_and_slopes(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Return the network at `points`, [N, d], and its derivatives by all inputs, [N, d], by hand."""
        *hidden, last = self._linear
        values = [points]
        for layer in hidden:
            values.append(torch.tanh(layer(values[-1])))
        slopes = last.weight.expand(len(points), -1)
        for layer, value in zip(reversed(hidden), reversed(values), strict=False):
            slopes = (slopes * (1 - value.square())) @ layer.weight
        return last(values[-1])[:, 0], slopes

    def jet(self, points: Tensor, coefficients: Sequence[float]) -> Jet:
        """See `propagate`."""
        return propagate(self._linear, points, coefficients)

    @property
    def _linear(self) -> list[nn.Linear]:
        return [layer for layer in self.layers if isinstance(layer, nn.Linear)]
