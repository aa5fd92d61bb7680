"""Small problems for the tests: a list of models x losses x data, in float64 and from fixed seeds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import Generator, Tensor, nn

Batch = tuple[Tensor, Tensor]
LossFunction = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Case:
    """One problem: a network, a loss, and samples to draw.

    Attributes:
        name: Names the case in the test report.
        build: Makes the network.
        loss: `loss(outputs, targets, reduction=...)` where the reduction is "mean" or "sum".
        draw_inputs: Maps a generator and a number of samples N to N inputs.
        answer: Maps a generator and the inputs to their targets.
        convex: Whether the loss is a convex function of the outputs, so that the GGN is positive semi-definite.
    """

    name: str
    build: Callable[[], nn.Module]
    loss: Callable[..., Tensor]
    draw_inputs: Callable[[Generator, int], Tensor]
    answer: Callable[[Generator, Tensor], Tensor]
    convex: bool = True

    def model(self, seed: int = 0) -> nn.Module:
        """The network, its weights drawn from a seed; in eval mode."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return self.build().double().eval()

    def batch(self, n: int, seed: int) -> Batch:
        """N inputs and their targets."""
        generator = torch.Generator().manual_seed(seed)
        inputs = self.draw_inputs(generator, n)
        return inputs, self.answer(generator, inputs)

    def loss_func(self, reduction: str = "mean") -> LossFunction:
        """The loss of a batch from its outputs and targets."""
        return partial(self.loss, reduction=reduction)


# ---------------------------------------------------------------------- data


def normal(*shape: int) -> Callable[[Generator, int], Tensor]:
    """Inputs of the given shape with independent standard normal entries."""
    return lambda generator, n: torch.randn(n, *shape, generator=generator, dtype=torch.float64)


def tokens(vocabulary: int, length: int) -> Callable[[Generator, int], Tensor]:
    """Sequences of tokens."""
    return lambda generator, n: torch.randint(vocabulary, (n, length), generator=generator)


def waves(outputs: int, noise: float = 0.3) -> Callable[[Generator, Tensor], Tensor]:
    """Regression: smooth functions of the inputs, and noise."""

    def answer(generator: Generator, inputs: Tensor) -> Tensor:
        mixed = inputs.flatten(1).double().cumsum(dim=1)[:, -outputs:]
        return torch.sin(mixed) + noise * torch.randn(mixed.shape, generator=generator, dtype=torch.float64)

    return answer


def classes(number: int, mistaken: float = 0.2) -> Callable[[Generator, Tensor], Tensor]:
    """Classification: which part of the input is the largest, with a share of random labels."""

    def answer(generator: Generator, inputs: Tensor) -> Tensor:
        parts = inputs.flatten(1).double().tensor_split(number, dim=1)
        labels = torch.stack([part.sum(dim=1) for part in parts], dim=1).argmax(dim=1)
        others = torch.randint(number, labels.shape, generator=generator)
        return torch.where(torch.rand(labels.shape, generator=generator) < mistaken, others, labels)

    return answer


def itself(generator: Generator, inputs: Tensor) -> Tensor:
    """Autoencoding: the signs of the inputs as zeros and ones."""
    return (inputs > 0.0).double()


# ---------------------------------------------------------------------- networks


def mlp(*widths: int) -> nn.Module:
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def layer_norm() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.GELU(), nn.Linear(5, 3))


def cnn() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(8, 3))


class BatchNormCNN(nn.Module):
    """A convolution with BatchNorm that has seen other data before, as after a training."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(1, 2, 3, bias=False)
        self.norm = nn.BatchNorm2d(2)
        self.classifier = nn.Linear(2, 3)
        self.norm.running_mean.uniform_(-0.5, 0.5)
        self.norm.running_var.uniform_(0.5, 2.0)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.classifier(nn.functional.softplus(self.norm(self.convolution(inputs))).mean(dim=(2, 3)))


class Recurrent(nn.Module):
    """A GRU whose last state is classified."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(2, 3, batch_first=True)
        self.classifier = nn.Linear(3, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        states, _ = self.gru(inputs)
        return self.classifier(states[:, -1])


class BagOfTokens(nn.Module):
    """The mean of the tokens' embeddings, classified."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(6, 3)
        self.classifier = nn.Linear(3, 4)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.classifier(torch.tanh(self.embedding(inputs)).mean(dim=1))


class Autoencoder(nn.Module):
    """Encoder and decoder use one weight matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.5 * torch.randn(3, 5))
        self.hidden = nn.Parameter(torch.zeros(3))
        self.visible = nn.Parameter(torch.zeros(5))

    def forward(self, inputs: Tensor) -> Tensor:
        code = torch.tanh(nn.functional.linear(inputs, self.weight, self.hidden))
        return nn.functional.linear(code, self.weight.T, self.visible)


# ---------------------------------------------------------------------- the list

CASES = [
    Case("linear-mse", partial(nn.Linear, 4, 2), nn.functional.mse_loss, normal(4), waves(2)),
    Case("mlp-mse", partial(mlp, 4, 5, 2), nn.functional.mse_loss, normal(4), waves(2)),
    Case("mlp-cross-entropy", partial(mlp, 4, 6, 3), nn.functional.cross_entropy, normal(4), classes(3)),
    Case("deep-mlp-huber", partial(mlp, 3, 4, 4, 1), nn.functional.huber_loss, normal(3), waves(1)),
    Case("layer-norm-cross-entropy", layer_norm, nn.functional.cross_entropy, normal(4), classes(3)),
    Case("cnn-cross-entropy", cnn, nn.functional.cross_entropy, normal(1, 6, 6), classes(3)),
    Case("batch-norm-cross-entropy", BatchNormCNN, nn.functional.cross_entropy, normal(1, 5, 5), classes(3)),
    Case("gru-cross-entropy", Recurrent, nn.functional.cross_entropy, normal(4, 2), classes(2)),
    Case("embedding-cross-entropy", BagOfTokens, nn.functional.cross_entropy, tokens(6, 5), classes(4)),
    Case("autoencoder-bce", Autoencoder, nn.functional.binary_cross_entropy_with_logits, normal(5), itself),
]


def case(name: str) -> Case:
    """The case of this name."""
    return next(one for one in CASES if one.name == name)


def each_case(wanted: Callable[[Case], bool] = lambda one: True) -> pytest.MarkDecorator:
    """Run a test with `case` set to each of the wanted cases."""
    return pytest.mark.parametrize("case", [pytest.param(one, id=one.name) for one in CASES if wanted(one)])
