"""The outputs and losses of random programs.

A term maps one output and the world to a scalar. Losses are sums of terms; each is written as a function of the outputs
alone, so that its Hessian in them can be had by itself.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from tests.curvature.program_parts import D, K, N, World
from torch import Tensor, nn

Term = Callable[[Tensor, World], Tensor]


def reals(z: Tensor, world: World) -> Tensor:
    """Targets of the shape of an output."""
    targets = world.batch.targets
    return targets[:, : z.shape[1]] if z.dim() == 2 else targets.flatten()[: z.numel()].view(z.shape)


def kept(world: World) -> Tensor:
    """Classes of which the first is to be left out."""
    return torch.where(torch.arange(N) == 0, -100, world.batch.classes)


def class_weights(z: Tensor) -> Tensor:
    return torch.linspace(0.5, 1.5, z.shape[1], dtype=z.dtype)


def by_sample(z: Tensor, world: World) -> Tensor:
    """A loop in Python over the samples."""
    total = torch.zeros(())
    for row, label in zip(z, world.batch.classes.tolist(), strict=True):
        total = total + row.logsumexp(0) - row[label]
    return total / len(z)


def focal(z: Tensor, world: World) -> Tensor:
    """Cross-entropy with weights that depend on the outputs, as constants."""
    logp = z.log_softmax(1).gather(1, world.batch.classes.unsqueeze(1)).squeeze(1)
    return -((1.0 - logp.detach().exp()) ** 2 * logp).mean()


def margins(z: Tensor, world: World) -> Tensor:
    correct = z[torch.arange(N), world.batch.classes].unsqueeze(1)
    return F.softplus(1.0 + z - correct).sum() / N


def scaled_by_item(z: Tensor, world: World) -> Tensor:
    loss = F.mse_loss(z, reals(z, world))
    return loss / (1.0 + loss.item())


# Terms that need logits of K classes or more, shape (N, C).
OF_LOGITS: dict[str, Term] = {
    "cross_entropy": lambda z, w: F.cross_entropy(z, w.batch.classes),
    "cross_entropy, sum": lambda z, w: F.cross_entropy(z, w.batch.classes, reduction="sum"),
    "cross_entropy, weight": lambda z, w: F.cross_entropy(z, w.batch.classes, weight=class_weights(z)),
    "cross_entropy, smoothed": lambda z, w: F.cross_entropy(z, w.batch.classes, label_smoothing=0.2),
    "cross_entropy, smoothing from outside": lambda z, w: F.cross_entropy(
        z, w.batch.classes, label_smoothing=0.1 * w.knobs.scale
    ),
    "cross_entropy, ignore_index": lambda z, w: F.cross_entropy(z, kept(w)),
    "cross_entropy, all options": lambda z, w: F.cross_entropy(
        z, w.batch.classes, weight=class_weights(z), ignore_index=1, label_smoothing=0.1
    ),
    "cross_entropy, probabilities": lambda z, w: F.cross_entropy(z, reals(z, w).softmax(1)),
    "cross_entropy, over positions": lambda z, w: F.cross_entropy(z.unsqueeze(2), w.batch.classes.unsqueeze(1)),
    "CrossEntropyLoss": lambda z, w: nn.CrossEntropyLoss()(z, w.batch.classes),
    "cross_entropy by sample": lambda z, w: F.cross_entropy(z, w.batch.classes, reduction="none").mean(),
    "nll_loss": lambda z, w: F.nll_loss(F.log_softmax(z, 1), w.batch.classes),
    "loop over samples": by_sample,
    "focal": focal,
    "margins": margins,
    "kl_div": lambda z, w: F.kl_div(z.log_softmax(1), reals(z, w).softmax(1), reduction="batchmean"),
    "entropy": lambda z, w: -(z.softmax(1) * z.log_softmax(1)).sum(1).mean(),
    "multi_margin_loss": lambda z, w: F.multi_margin_loss(z, w.batch.classes, p=2),
}
# Terms for outputs of any shape.
OF_REALS: dict[str, Term] = {
    "mse_loss": lambda z, w: F.mse_loss(z, reals(z, w)),
    "mse_loss, sum": lambda z, w: F.mse_loss(z, reals(z, w), reduction="sum"),
    "MSELoss": lambda z, w: nn.MSELoss()(z, reals(z, w)),
    "bce_with_logits": lambda z, w: F.binary_cross_entropy_with_logits(z, (reals(z, w) > 0.0).to(z.dtype)),
    "bce_with_logits, pos_weight": lambda z, w: F.binary_cross_entropy_with_logits(
        z, reals(z, w).sigmoid(), pos_weight=torch.full_like(z, 1.5), reduction="sum"
    ),
    "huber_loss": lambda z, w: F.huber_loss(z, reals(z, w), delta=0.7),
    "smooth_l1_loss": lambda z, w: F.smooth_l1_loss(z, reals(z, w), beta=w.knobs.scale),
    "l1_loss": lambda z, w: F.l1_loss(z, reals(z, w)) + 0.1 * z.square().mean(),
    "poisson_nll_loss": lambda z, w: F.poisson_nll_loss(z, reals(z, w).abs()),
    "gaussian_nll_loss": lambda z, w: F.gaussian_nll_loss(z, reals(z, w), 0.3 + torch.sigmoid(z)),
    "soft_margin_loss": lambda z, w: F.soft_margin_loss(z, (reals(z, w) > 0.0).to(z.dtype) * 2 - 1),
    "squares by hand": lambda z, w: ((z - reals(z, w)) ** 2).mean(),
    "squares by hand, sum over number": lambda z, w: (z - reals(z, w)).square().sum() / z.numel(),
    "half a square": lambda z, w: 0.5 * z.pow(2).sum(),
    "mean": lambda z, w: z.mean(),
    "log cosh": lambda z, w: (z - reals(z, w)).cosh().log().sum(),
    "exponent from outside": lambda z, w: (z**w.knobs.power).mean() + z.square().mean(),
    "quartic": lambda z, w: (z**4).mean() + z.sin().mean(),
    "scaled by its item": scaled_by_item,
    "masked mean": lambda z, w: (z.square() * (reals(z, w) > 0.0)).sum() / (reals(z, w) > 0.0).sum().clamp(min=1),
    "norm": lambda z, w: (z - reals(z, w)).norm(),
}
OF_COMPLEX: dict[str, Term] = {
    "squared modulus": lambda z, w: z.abs().square().mean(),
    "z times its conjugate": lambda z, w: (z * z.conj()).real.sum(),
    "parts": lambda z, w: z.real.sin().mean() + (z.imag**2).mean() + (z.real * z.imag).mean(),
}
KINKED = {"huber_loss", "smooth_l1_loss", "l1_loss", "multi_margin_loss"}
CUT = {"focal", "scaled by its item"}


class Loss:
    """A sum of terms, as a function of the list of outputs.

    Args:
        draw: Makes the random choices.
        world: Data and constants.
        kinds: For each output "logits", "reals" or "complex".

    Attributes:
        names: Of its terms.
    """

    def __init__(self, draw: random.Random, world: World, kinds: Sequence[str]) -> None:
        self._world = world
        self.names: list[str] = []
        self._terms = [self._term(draw, kind) for kind in kinds]
        self._factors = [1.0] if len(kinds) == 1 and draw.random() < 0.6 else [draw.uniform(0.5, 1.5) for _ in kinds]
        double = kinds[0] != "complex" and draw.random() < 0.08
        self._second = self._term(draw, kinds[0]) if double else None
        self._coupled = len(kinds) > 1 and "complex" not in kinds and draw.random() < 0.4
        world.say(", coupled" * self._coupled)

    def _term(self, draw: random.Random, kind: str) -> Term:
        options = {
            "logits": OF_LOGITS if draw.random() < 0.6 else OF_REALS,
            "reals": OF_REALS,
            "complex": OF_COMPLEX,
        }[kind]
        name = draw.choices(list(options), [0.2 if name == "multi_margin_loss" else 1.0 for name in options])[0]
        self._world.say(name)
        self.names.append(name)
        return options[name]

    def __call__(self, outputs: Sequence[Tensor]) -> Tensor:
        outputs = [z.float() if z.dtype == torch.bfloat16 else z for z in outputs]
        terms = [term(z, self._world) for term, z in zip(self._terms, outputs, strict=True)]
        if self._factors == [1.0] and self._second is None:
            return terms[0]  # the very call of a loss function, for which there may be a closed form
        loss: Tensor = sum(factor * term for factor, term in zip(self._factors, terms, strict=True))  # type: ignore[assignment]
        if self._second is not None:
            loss = loss + 0.5 * self._second(outputs[0], self._world)
        if self._coupled:
            loss = loss + 0.1 * torch.tanh(outputs[0].sum()) * outputs[1].mean()
        return loss


class Outputs(nn.Module):
    """The head of a network: from features to the outputs that the loss is computed from.

    Attributes:
        kinds: For each output "logits", "reals" or "complex".
    """

    def __init__(self, kinds: Sequence[str], compute: Callable, **members: Any) -> None:
        super().__init__()
        self.kinds, self.compute = kinds, compute
        for name, member in members.items():
            setattr(self, name, member)

    def forward(self, h: Tensor) -> list[Tensor]:
        return self.compute(h, self)


def _head(width: int = K) -> nn.Module:
    return nn.Linear(D, width)


def _in_place(h: Tensor, m: Outputs) -> list[Tensor]:
    z = m.z(h)
    z *= 1.5
    z[:, 0] += h[:, 0]
    return [z]


def _hooked(h: Tensor, m: Outputs) -> list[Tensor]:
    z = m.z(h)
    z.register_hook(lambda g: 0.5 * g)
    return [z]


def _retained(h: Tensor, m: Outputs) -> list[Tensor]:
    z = m.z(h)
    z.retain_grad()
    return [z]


def _with_features(h: Tensor, m: Outputs) -> list[Tensor]:
    h = m.first(h).tanh()
    return [m.z(h), h]


def _with_both(function: Callable) -> Callable:
    def apply(h: Tensor, m: Outputs) -> list[Tensor]:
        z = m.z(h)
        return [z, function(z)]

    return apply


# Outputs by name: (how often, (kinds, function of features and head, members of the head)).
OUTPUTS: dict[str, tuple[float, Callable[[], Outputs]]] = {
    "one output": (12, lambda: Outputs(["logits"], lambda h, m: [m.z(h)], z=_head())),
    "one column": (1, lambda: Outputs(["reals"], lambda h, m: [m.z(h).squeeze(1)], z=_head(1))),
    "written in place": (1, lambda: Outputs(["logits"], _in_place, z=_head())),
    "hook on the output": (0.5, lambda: Outputs(["logits"], _hooked, z=_head())),
    "retain_grad on the output": (0.5, lambda: Outputs(["logits"], _retained, z=_head())),
    "features as outputs": (1, lambda: Outputs(["logits"], lambda h, m: [m.z(h)], z=nn.Linear(D, D))),
    "two heads": (2, lambda: Outputs(["logits", "reals"], lambda h, m: [m.z(h), m.w(h)], z=_head(), w=_head(2))),
    "z(h) and h": (2, lambda: Outputs(["logits", "logits"], _with_features, first=nn.Linear(D, D), z=_head())),
    "h and z(h)": (
        1,
        lambda: Outputs(
            ["logits", "logits"], lambda h, m: _with_features(h, m)[::-1], first=nn.Linear(D, D), z=_head()
        ),
    ),
    "z and softmax(z)": (1, lambda: Outputs(["logits", "logits"], _with_both(lambda z: z.softmax(1)), z=_head())),
    "z and its first column": (1, lambda: Outputs(["logits", "reals"], _with_both(lambda z: z[:, 0]), z=_head())),
    "two chunks": (1, lambda: Outputs(["logits"] * 2, lambda h, m: list(m.z(h).chunk(2, 1)), z=_head(2 * K))),
    "columns": (1, lambda: Outputs(["reals"] * 3, lambda h, m: list(m.z(h).unbind(1)), z=_head())),
    "samples": (0.5, lambda: Outputs(["reals"] * N, lambda h, m: list(m.z(h)), z=_head(2))),
    "z and a parameter": (
        1,
        lambda: Outputs(["logits", "reals"], lambda h, m: [m.z(h), m.p], z=_head(), p=nn.Parameter(torch.randn(K))),
    ),
    "complex": (1, lambda: Outputs(["complex"], lambda h, m: [torch.fft.rfft(m.z(h))], z=_head())),
    "complex and real": (
        0.5,
        lambda: Outputs(["complex", "logits"], lambda h, m: [torch.fft.rfft(m.z(h)), m.w(h)], z=_head(), w=_head()),
    ),
}


def draw_outputs(draw: random.Random, world: World) -> Outputs:
    name = draw.choices(list(OUTPUTS), [often for often, _ in OUTPUTS.values()])[0]
    world.say(f"| {name}:")
    return OUTPUTS[name][1]()


# How outputs are returned: from the list of those used, the features and the first output's values.
STRUCTURES: dict[str, Callable[[list[Tensor], Tensor], Any]] = {
    "as they are": lambda used, h: used[0] if len(used) == 1 else tuple(used),
    "list": lambda used, h: used,
    "dict": lambda used, h: {f"output {i}": z for i, z in enumerate(used)},
    "nested": lambda used, h: {"a": (used[0], {"rest": used[1:]}), "n": 3, "name": "x", "none": None},
    "with unused features": lambda used, h: (h, *used),
    "with predictions and values": lambda used, h: {
        "predicted": used[0].detach().abs().argmax(-1),
        "used": used,
        "values": used[0].detach(),
    },
    "with unused results": lambda used, h: {"used": used, "more": [used[0].sum(), used[0].sin(), h.mean()]},
    "one of them twice": lambda used, h: [*used, used[0]],
    "copies": lambda used, h: [z.clone() for z in used],
    "with an unused view": lambda used, h: [used[0].reshape(-1), *used],
}
