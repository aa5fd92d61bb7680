"""Initial weights of the convolutional networks."""

from torch import nn


def xavier_normal(model: nn.Module) -> nn.Module:
    """Draw convolution weights from Glorot and Bengio's normal distribution, set biases to zero; return ``model``."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.bias is not None:
            nn.init.xavier_normal_(module.weight)
            nn.init.zeros_(module.bias)
    return model
