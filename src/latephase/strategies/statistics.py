"""The statistics of batch normalisation, for weights that no training step has seen."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from latephase.random_state import read_random_state, write_random_state


def renew_statistics(model: nn.Module, batches: Iterable[Tensor], device: torch.device) -> None:
    """Let batch normalisation forget its statistics and take the mean over batches of inputs.

    Unlike PyTorch's `update_bn` it leaves alone what is in evaluation mode, which is how layers are frozen, and the
    random numbers that come after it (dropout's).
    """
    renewed = [layer for layer in model.modules() if isinstance(layer, _BatchNorm) and layer.training]
    if not renewed:
        return
    random = read_random_state(device)
    momenta = [layer.momentum for layer in renewed]
    for layer in renewed:
        layer.reset_running_stats()
        layer.momentum = None  # which makes it a cumulative mean
    try:
        with torch.no_grad():
            for inputs in batches:
                model(inputs)
    finally:
        for layer, momentum in zip(renewed, momenta, strict=True):
            layer.momentum = momentum
        write_random_state(device, random)
