"""Initial weights of the networks."""

from collections.abc import Callable
from typing import TypeVar

from torch import Tensor, nn

Model = TypeVar("Model", bound=nn.Module)


def initialise(
    model: Model,
    *,
    convolution: Callable[[Tensor], Tensor] = nn.init.xavier_normal_,
    dense: Callable[[Tensor], Tensor] = nn.init.xavier_uniform_,
    bias: float = 0.0,
) -> Model:
    """Draw the weights of convolutions and dense layers, and set their biases.

    Args:
        model: The network.
        convolution: Draws a convolution's weights, by default from Glorot and Bengio's normal distribution.
        dense: Draws a dense layer's, by default from their uniform distribution.
        bias: All biases.

    Returns:
        The network that was given.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            draw = convolution if isinstance(module, nn.Conv2d) else dense
            draw(module.weight)
            if module.bias is not None:
                nn.init.constant_(module.bias, bias)
    return model
