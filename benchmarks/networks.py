"""The networks that are measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from latephase.study.problems import cifar10_3c3d, cifar100_allcnnc, svhn_wrn164

TOKENS, SEQUENCE, WIDTH = 1000, 64, 128


@dataclass(frozen=True)
class Network:
    """A classifier and a batch of random data for it.

    Attributes:
        name: Its row in the tables.
        build: Returns the network.
        inputs: Shape of one input; token ids where `tokens`.
        classes: Number of classes.
        batch: Examples in a batch.
        micro_batch: Examples in each of the micro-batches of an accumulating step; on a GPU it is `batch`.
        training: Whether the network is in training mode. Those with dropout or BatchNorm are not.
        tokens: Whether inputs are token ids below `TOKENS` instead of normal numbers.
    """

    name: str
    build: Callable[[], nn.Module]
    inputs: tuple[int, ...]
    classes: int
    batch: int
    micro_batch: int
    training: bool = True
    tokens: bool = False

    def draw(self, count: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return `count` random inputs, and targets of which small ones are more frequent.

        That much can be learned from them, so a step on one batch is a success on another.
        """
        shape = (count, *self.inputs)
        inputs = torch.randint(TOKENS, shape) if self.tokens else torch.randn(shape)
        targets = torch.multinomial(1 / torch.arange(1.0, 1.0 + self.classes), count, replacement=True)
        return inputs.to(device), targets.to(device)


class Transformer(nn.Module):
    """Four encoder layers, four heads, no dropout; the mean over the tokens is classified."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(TOKENS, WIDTH)
        self.positions = nn.Parameter(0.02 * torch.randn(SEQUENCE, WIDTH))
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 4 * WIDTH, dropout=0.0, batch_first=True)
        self.encode = nn.TransformerEncoder(layer, 4)
        self.classify = nn.Linear(WIDTH, 10)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map [N, 64] token ids to [N, 10]."""
        return self.classify(self.encode(self.embed(tokens) + self.positions).mean(dim=1))


class MathTransformer(Transformer):
    """The same with attention written out in plain operations, which every method can differentiate."""

    def forward(self, tokens: Tensor) -> Tensor:
        """Map [N, 64] token ids to [N, 10]."""
        with sdpa_kernel(SDPBackend.MATH):
            return super().forward(tokens)


class LSTMClassifier(nn.Module):
    """One LSTM layer; its last hidden state is classified."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(TOKENS, WIDTH)
        self.read = nn.LSTM(WIDTH, WIDTH, batch_first=True)
        self.classify = nn.Linear(WIDTH, 10)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map [N, 64] token ids to [N, 10]."""
        states, _ = self.read(self.embed(tokens))
        return self.classify(states[:, -1])


def mlp() -> nn.Module:
    """Return 784-1000-500-250-10 with ReLU."""
    widths = (784, 1000, 500, 250)
    hidden = [layer for a, b in pairwise(widths) for layer in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*hidden, nn.Linear(widths[-1], 10))


IMAGE = (3, 32, 32)
NETWORKS = {
    network.name: network
    for network in (
        Network("3c3d", cifar10_3c3d.build_model, IMAGE, 10, batch=128, micro_batch=32),
        Network("allcnnc", cifar100_allcnnc.build_model, IMAGE, 100, batch=64, micro_batch=8, training=False),
        Network("wrn164", svhn_wrn164.build_model, IMAGE, 10, batch=64, micro_batch=8, training=False),
        Network("mlp", mlp, (784,), 10, batch=256, micro_batch=256),
        Network("transformer", Transformer, (SEQUENCE,), 10, batch=32, micro_batch=16, tokens=True),
        Network("transformer_math", MathTransformer, (SEQUENCE,), 10, batch=32, micro_batch=16, tokens=True),
        Network("lstm", LSTMClassifier, (SEQUENCE,), 10, batch=64, micro_batch=64, tokens=True),
    )
}


class Task:
    """A network at a point of a training run: parameters, a batch, and closures over them.

    Args:
        network: What to build.
        device: Where.
        batch: Examples in the batch; the network's own number by default.
    """

    def __init__(self, network: Network, device: torch.device, batch: int | None = None) -> None:
        torch.manual_seed(0)
        self.network = network
        self.device = device
        self.model = network.build().to(device).train(network.training)
        self.params = list(self.model.parameters())
        self.loss_func = nn.CrossEntropyLoss()
        self.batch = batch or network.batch
        self.draw_batch()
        self.v = torch.randn(sum(p.numel() for p in self.params)).to(device)

    def draw_batch(self) -> None:
        """Go to other data."""
        self.inputs, self.targets = self.network.draw(self.batch, self.device)

    def move(self) -> None:
        """Go to another point, as an optimizer's step does: other data, and parameters changed in place."""
        self.draw_batch()
        with torch.no_grad():
            for p in self.params:
                p.add_(1e-3 * p.abs().mean() * torch.randn_like(p))

    def closure(self) -> Callable[[], tuple[Tensor, Tensor]]:
        """Return a new closure over the present batch."""
        model, loss_func, inputs, targets = self.model, self.loss_func, self.inputs, self.targets

        def forward() -> tuple[Tensor, Tensor]:
            outputs = model(inputs)
            return loss_func(outputs, targets), outputs

        return forward

    def gradient(self) -> tuple[Tensor, ...]:
        """The unit of all costs: one forward and one backward pass."""
        loss, _ = self.closure()()
        return torch.autograd.grad(loss, self.params)
