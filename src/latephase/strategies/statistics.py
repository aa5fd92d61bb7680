"""The statistics of batch normalisation, for weights that no training step has seen."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from latephase.distributed import ALONE, Ranks
from latephase.random_state import read_random_state, write_random_state


def renew_statistics(model: nn.Module, batches: Iterable[Tensor], device: torch.device, ranks: Ranks = ALONE) -> None:
    """Let batch normalisation forget its statistics and take the mean over batches of inputs, and over all ranks'.

    Unlike PyTorch's `update_bn` it leaves alone what is in evaluation mode, which is how layers are frozen, and the
    random numbers that come after it (dropout's).
    """
    layers = [layer for layer in model.modules() if isinstance(layer, _BatchNorm)]
    renewed = [layer for layer in layers if layer.training and layer.running_mean is not None]
    if not renewed:
        return
    random = read_random_state(device)
    momenta = [layer.momentum for layer in renewed]
    statistics = [s for layer in renewed for s in (layer.running_mean, layer.running_var) if s is not None]
    for layer in renewed:
        layer.reset_running_stats()
        layer.momentum = None  # which makes it a cumulative mean

    def look() -> Tensor:
        for inputs in batches:
            model(inputs)
        return torch.cat([statistic.flatten() for statistic in statistics])

    try:
        with torch.no_grad():
            means = ranks.sum("statistics of batches", look) / ranks.count
            for statistic, mean in zip(statistics, means.split([s.numel() for s in statistics]), strict=True):
                statistic.copy_(mean.view_as(statistic))
    finally:
        for layer, momentum in zip(renewed, momenta, strict=True):
            layer.momentum = momentum
        write_random_state(device, random)
