"""The parts of random programs: layers and functions that map features of shape (N, D) to others of that shape.

A part is registered under a name with what is special about it. A layer is a function `(draw, world) -> module`,
where `draw` makes its random choices; a function of the features is `(h, world) -> h`. What changes between two
calls of one closure (data, constants in Python, flags) is in the `world`.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

N, D, K = 4, 4, 3  # samples, features, classes


class Knobs(NamedTuple):
    """Values in Python that a closure's code reads, and that may differ between calls."""

    scale: float
    power: int
    on: bool
    which: int
    shift: int


class Batch(NamedTuple):
    """Data: (N, D) vectors, (N, 3) tokens, (N, 1, 4, 4) images, (N, 3, D) sequences; (N,) classes, (N, 6) targets."""

    vectors: Tensor
    tokens: Tensor
    images: Tensor
    sequences: Tensor
    classes: Tensor
    targets: Tensor

    @classmethod
    def drawn(cls, seed: int, dtype: torch.dtype) -> Batch:
        generator = torch.Generator().manual_seed(seed)
        normal = partial(torch.randn, generator=generator, dtype=torch.float64)
        vectors, images, sequences, targets = normal(N, D), normal(N, 1, 4, 4), normal(N, 3, D), normal(N, 6)
        tokens, classes = (
            torch.randint(high, (N, *shape), generator=generator) for high, shape in ((7, (3,)), (K, ()))
        )
        return cls(vectors.to(dtype), tokens, images.to(dtype), sequences.to(dtype), classes, targets.to(dtype))

    def to(self, dtype: torch.dtype) -> Batch:
        return Batch(*(t.to(dtype) if t.is_floating_point() else t for t in self))


class World:
    """What the parts of a program share.

    Attributes:
        batch: The data of the present call.
        knobs: The constants of the present call.
        log: What the closure keeps for its user to look at.
        parts: Those in use, in the order they were drawn.
        details: Words that describe the program.
        allowed: Which parts may be drawn.
        exact: Whether what has no second derivatives is to be replaced by what has.
        clipped: Whether a gradient was clipped, so that it is no linear function of another.
    """

    def __init__(self, allowed: Callable[[Part], bool], exact: bool) -> None:
        self.batch: Batch
        self.knobs: Knobs
        self.log: list[Any] = []
        self.parts: list[Part] = []
        self.details: list[str] = []
        self.allowed, self.exact = allowed, exact
        self.clipped = False

    def draw(self, draw: random.Random, group: str = "any") -> nn.Module:
        """A part drawn at random, from all or from a group."""
        choices = [p for p in PARTS.values() if self.allowed(p) and group in ("any", p.group)]
        return self.make(draw.choices(choices, [p.weight for p in choices])[0], draw)

    def make(self, part: Part, draw: random.Random) -> nn.Module:
        """A part that was chosen."""
        self.parts.append(part)
        self.say(part.name)
        return part.build(draw, self)

    def say(self, words: str) -> None:
        """Add to the description of the program."""
        self.details.append(words)

    def choose(self, draw: random.Random, options: dict[str, Any]) -> Any:
        """One of the options by name, which becomes part of the description."""
        name = draw.choice(list(options))
        self.say(f"({name})")
        return options[name]


class Part(NamedTuple):
    """One kind of part.

    Attributes:
        name: Describes it.
        build: Makes one, from random choices and the world.
        group: "plain" parts are in most networks; "other" ones are what the test is about.
        weight: How often it is drawn, relative to others.
        smooth: Whether small changes of its input make small changes of its derivatives.
        exact: Whether autograd's derivatives are the derivatives (not where something is cut off or replaced).
        draws: Whether it takes random numbers.
    """

    name: str
    build: Callable[[random.Random, World], nn.Module]
    group: str = "other"
    weight: float = 1.0
    smooth: bool = True
    exact: bool = True
    draws: bool = False


PARTS: dict[str, Part] = {}


def layer(name: str, **properties: Any) -> Callable:
    """Register a function `(draw, world) -> module`."""

    def register(build: Callable) -> Callable:
        PARTS[name] = Part(name, build, **properties)
        return build

    return register


def function(name: str, **properties: Any) -> Callable:
    """Register a function `(features, world) -> features`."""

    def register(apply: Callable) -> Callable:
        PARTS[name] = Part(name, lambda draw, world: Apply(apply, world), **properties)
        return apply

    return register


class Apply(nn.Module):
    """A function of the features as a module."""

    def __init__(self, compute: Callable, world: World) -> None:
        super().__init__()
        self.compute, self.world = compute, world

    def forward(self, h):
        return self.compute(h, self.world)


class With(nn.Module):
    """A function of the features and of modules or parameters, `(h, self) -> h`."""

    def __init__(self, compute: Callable, world: World, **members: Any) -> None:
        super().__init__()
        self.compute, self.world = compute, world
        for name, member in members.items():
            setattr(self, name, member)

    def forward(self, h):
        return self.compute(h, self)


def weight(*shape: int) -> nn.Parameter:
    return nn.Parameter(0.5 * torch.randn(*shape))


class Constant(nn.Module):
    """A tensor that a program has from outside, as a buffer."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.register_buffer("value", value)


# ---------------------------------------------------------------------- plain layers

SMOOTH = {
    "tanh": nn.Tanh,
    "GELU": nn.GELU,
    "GELU by tanh": partial(nn.GELU, approximate="tanh"),
    "SiLU": nn.SiLU,
    "softplus": nn.Softplus,
    "sigmoid": nn.Sigmoid,
    "Mish": nn.Mish,
    "softmax": partial(nn.Softmax, 1),
    "log-softmax": partial(nn.LogSoftmax, 1),
}
KINKED = {
    "ReLU": nn.ReLU,
    "leaky ReLU": nn.LeakyReLU,
    "ELU": nn.ELU,
    "hardtanh": nn.Hardtanh,
    "hardswish": nn.Hardswish,
    "PReLU": nn.PReLU,
    "softshrink": partial(nn.Softshrink, 0.1),
}


@layer("Linear", group="plain", weight=8)
def linear(draw, world):
    return nn.Linear(D, D, bias=draw.random() < 0.8)


@layer("smooth activation", group="plain", weight=6)
def smooth_activation(draw, world):
    return world.choose(draw, SMOOTH)()


@layer("kinked activation", group="plain", weight=2, smooth=False)
def kinked_activation(draw, world):
    return world.choose(draw, KINKED)()


@layer("Linear, activation in place", group="plain", weight=2, smooth=False)
def activation_in_place(draw, world):
    options = {"ReLU": nn.ReLU(True), "SiLU": nn.SiLU(True), "ELU": nn.ELU(inplace=True)}
    return nn.Sequential(nn.Linear(D, D), world.choose(draw, options))


@layer("normalisation", group="plain", weight=7)
def normalisation(draw, world):
    affine = world.choose(draw, {"trained": True, "frozen": None, "no weights": False})
    options = {
        "LayerNorm": lambda: nn.LayerNorm(D, elementwise_affine=affine is not False),
        "BatchNorm, train": lambda: nn.BatchNorm1d(D, affine=affine is not False),
        "BatchNorm, batch statistics": lambda: nn.BatchNorm1d(D, affine=affine is not False, track_running_stats=False),
        "BatchNorm, eval": lambda: nn.BatchNorm1d(D, affine=affine is not False).eval(),
        "GroupNorm": lambda: nn.GroupNorm(2, D, affine=affine is not False),
        "RMSNorm": lambda: nn.RMSNorm(D, elementwise_affine=affine is not False),
    }
    norm = world.choose(draw, options)()
    for p in norm.parameters():
        p.data += 0.3 * torch.randn_like(p)
        p.requires_grad_(affine is True)
    return norm


@layer("functional LayerNorm", group="plain")
def functional_layer_norm(draw, world):
    trained = world.choose(draw, {"both trained": (True, True), "weight": (True, False), "bias": (False, True)})
    gain, bias = (nn.Parameter(torch.randn(D), requires_grad=one) for one in trained)
    return With(lambda h, m: F.layer_norm(h, (D,), m.gain, m.bias), world, gain=gain, bias=bias)


@layer("residual connection", group="plain", weight=4)
def residual(draw, world):
    return With(lambda h, m: h + m.inner(h), world, inner=world.draw(draw))


@layer("MLP", group="plain", weight=2)
def mlp(draw, world):
    return nn.Sequential(nn.Linear(D, 5), nn.Tanh(), nn.Linear(5, D))


@layer("frozen Linear", group="plain", weight=2)
def frozen_linear(draw, world):
    return nn.Linear(D, D).requires_grad_(False)


@layer("tied weights", group="plain", weight=2)
def tied(draw, world):
    first, second = nn.Linear(D, D), nn.Linear(D, D)
    second.weight = first.weight
    return nn.Sequential(first, nn.Tanh(), second)


@layer("transposed tied weight", group="plain")
def tied_transposed(draw, world):
    return With(lambda h, m: torch.tanh(h @ m.W) @ m.W.T, world, W=weight(D, 3))


@layer("one layer twice", group="plain")
def shared(draw, world):
    inner = nn.Linear(D, D)
    return nn.Sequential(inner, nn.Tanh(), inner)


@layer("a part twice", group="plain")
def part_twice(draw, world):
    inner = world.draw(draw)
    return nn.Sequential(inner, inner)


@layer("dropout", group="plain", weight=3, draws=True)
def dropout(draw, world):
    options = {
        "Dropout": lambda: nn.Dropout(0.3),
        "AlphaDropout": lambda: nn.AlphaDropout(0.3),
        "functional": lambda: Apply(lambda h, world: F.dropout(h, 0.3), world),
        "eval": lambda: nn.Dropout(0.3).eval(),
    }
    return world.choose(draw, options)()


@layer("Conv1d", group="plain", weight=2)
def conv1d(draw, world):
    first = nn.Conv1d(1, 2, 3, padding=1, padding_mode=draw.choice(["zeros", "circular"]))
    return With(
        lambda h, m: m.last(m.first(h.unsqueeze(1)).tanh()).squeeze(1), world, first=first, last=nn.Conv1d(2, 1, 1)
    )


@layer("Conv2d", group="plain", weight=2)
def conv2d(draw, world):
    between = world.choose(draw, {"GELU": nn.GELU(), "BatchNorm": nn.BatchNorm2d(2), "GroupNorm": nn.GroupNorm(1, 2)})
    inner = nn.Sequential(nn.Conv2d(1, 2, 2, padding=1), between, nn.Conv2d(2, 1, 2))
    return With(lambda h, m: m.inner(h.reshape(N, 1, 2, 2)).flatten(1), world, inner=inner)


@layer("recurrent layer", group="plain", weight=1)
def recurrent(draw, world):
    kind = world.choose(draw, {"GRU": nn.GRU, "LSTM": nn.LSTM, "RNN": nn.RNN})
    return With(lambda h, m: m.inner(h.reshape(N, 2, 2))[0].flatten(1), world, inner=kind(2, 2, batch_first=True))


@layer("recurrent cell", group="plain")
def recurrent_cell(draw, world):
    def unrolled(h, m):
        state = torch.zeros(N, D, dtype=h.dtype)
        for _ in range(2):
            state = m.cell(h, state)
        return state

    return With(unrolled, world, cell=nn.GRUCell(D, D))


@layer("MultiheadAttention", group="plain", weight=1)
def attention(draw, world):
    weights = world.choose(draw, {"need_weights": True, "fused": False})

    def attend(h, m):
        x = h.reshape(N, 2, 2)
        return m.inner(x, x, x, need_weights=weights)[0].flatten(1)

    return With(attend, world, inner=nn.MultiheadAttention(2, 1, batch_first=True))


@layer("attention over samples", group="plain")
def attention_over_samples(draw, world):
    def attend(h, m):
        scores = m.q(h) @ h.T / D**0.5
        causal = torch.ones(N, N, dtype=torch.bool).tril()
        return scores.masked_fill(~causal, float("-inf")).softmax(-1) @ h

    return With(attend, world, q=nn.Linear(D, D))


@layer("Bilinear", group="plain")
def bilinear(draw, world):
    return With(
        lambda h, m: m.inner(h.to(m.inner.bias.dtype), m.world.batch.vectors), world, inner=nn.Bilinear(D, D, D)
    )


@layer("embedding of classes", group="plain", weight=2)
def embedding(draw, world):
    def add(h, m):
        return h + m.inner(m.world.batch.classes)

    return With(add, world, inner=nn.Embedding(K, D, _freeze=world.choose(draw, {"trained": False, "frozen": True})))


@layer("parameters without a module", group="plain", weight=2)
def bare_parameters(draw, world):
    A, b = weight(D, D), weight(D)
    options = {
        "matmul": lambda h, m: h @ m.A + m.b,
        "einsum": lambda h, m: torch.einsum("ni,ij->nj", h, m.A),
        "addmm": lambda h, m: torch.addmm(m.b, h, m.A),
        "scale and shift": lambda h, m: h * m.b.exp() + m.A[0],
        "addcmul": lambda h, m: torch.addcmul(m.A, h, m.A, value=m.world.knobs.scale),
        "low rank": lambda h, m: h + (h @ m.A[:, :1]) @ m.A[:1],
        "baddbmm": lambda h, m: torch.baddbmm(h.unsqueeze(1), h.unsqueeze(1), m.A.expand(N, D, D)).squeeze(1),
        "clamped": lambda h, m: h * m.b.clamp(min=-0.1),
    }
    return With(world.choose(draw, options), world, A=A, b=b)


@layer("gate", group="plain", weight=2)
def gate(draw, world):
    return With(lambda h, m: h * torch.sigmoid(m.inner(h)), world, inner=nn.Linear(D, D))


@layer("experts", smooth=False)
def experts(draw, world):
    def route(h, m):
        gates = m.router(h).softmax(-1)
        return torch.where(gates.argmax(-1, keepdim=True) == 0, gates[:, :1] * m.a(h), gates[:, 1:] * m.b(h))

    return With(route, world, router=nn.Linear(D, 2), a=nn.Linear(D, D), b=nn.Linear(D, D))


# ---------------------------------------------------------------------- parametrizations, wrapped calls


class WeightNorm(nn.Module):
    """In elementary operations. PyTorch's own has one whose second derivatives are wrong."""

    def forward(self, g, v):
        return v * (g / v.norm(dim=1, keepdim=True))

    def right_inverse(self, W):
        return W.norm(dim=1, keepdim=True), W


@layer("weight_norm")
def weight_norm(draw, world):
    inner = nn.Linear(D, D)
    if not world.exact:
        return parametrizations.weight_norm(inner)
    nn.utils.parametrize.register_parametrization(inner, "weight", WeightNorm(), unsafe=True)
    return inner


@layer("orthogonal")
def orthogonal(draw, world):
    options = {"matrix_exp": "matrix_exp", "cayley": "cayley", "householder": "householder"}
    return parametrizations.orthogonal(nn.Linear(D, D), orthogonal_map=world.choose(draw, options))


@layer("spectral_norm", exact=False)
def spectral_norm(draw, world):
    inner = parametrizations.spectral_norm(nn.Linear(D, D))
    return inner.train(world.choose(draw, {"train": True, "eval": False}))


class Symmetric(nn.Module):
    def forward(self, X):
        return X.triu() + X.triu(1).T


@layer("symmetric parametrization")
def symmetric(draw, world):
    inner = nn.Linear(D, D)
    nn.utils.parametrize.register_parametrization(inner, "weight", Symmetric())
    return inner


@layer("functional_call")
def functional_call(draw, world):
    def call(h, m):
        return torch.func.functional_call(m.inner, {"weight": torch.tanh(m.inner.weight)}, (h,))

    return With(call, world, inner=nn.Linear(D, D))


@layer("checkpoint")
def checkpointed(draw, world):
    def call(h, m):
        return checkpoint(m.inner, h, use_reentrant=False)

    return With(call, world, inner=nn.Sequential(nn.Linear(D, D), nn.Tanh()))


@layer("inner gradient", weight=3)
def inner_gradient(draw, world):
    """The gradient of an energy in the features, or a network's derivative in its input, as PINNs have it."""

    def call(h, m):
        x = h if h.requires_grad else h.detach().requires_grad_()
        u = m.inner(x)
        (slope,) = torch.autograd.grad(u.sum() if m.world.knobs.on else u.square().sum(), x, create_graph=True)
        return torch.cat([u[:, :2], slope[:, 2:]], dim=1)

    return With(call, world, inner=nn.Sequential(nn.Linear(D, D), nn.Tanh(), nn.Linear(D, 2)))


@layer("inner gradient without a graph", exact=False)
def inner_gradient_cut(draw, world):
    """As an adversarial example has it: a constant."""

    def call(h, m):
        x = h.detach().requires_grad_()
        (slope,) = torch.autograd.grad(m.inner(x).square().sum(), x)
        return m.inner(h + 0.1 * slope)

    return With(call, world, inner=nn.Sequential(nn.Linear(D, D), nn.Tanh()))


@layer("torch.func inside")
def functional_transforms(draw, world):
    options = {
        "vmap": lambda h, m: torch.vmap(m.inner)(h),
        "grad": lambda h, m: torch.func.grad(lambda x: m.inner(x).square().sum())(h),
        "jvp": lambda h, m: torch.func.jvp(m.inner, (h,), (torch.ones_like(h),))[1],
    }
    return With(world.choose(draw, options), world, inner=nn.Sequential(nn.Linear(D, D), nn.Tanh()))


# ---------------------------------------------------------------------- writes in place


@function("writes into slices", weight=2)
def writes_into_slices(h, world):
    z = torch.sin(h)
    z[:, :2] *= 2.0
    z[:, 2:] += h[:, :2]
    z += 1.0
    return z


@function("zeros with columns written", weight=2)
def zeros_written(h, world):
    out = torch.zeros(N, D)
    for i in range(D - 1):
        out[:, i] = torch.sin(h[:, i]) * (i + 1)
    return out


@function("zeros with columns added", weight=2)
def zeros_added(h, world):
    out = torch.zeros(N, D)
    for i in range(2):
        out[:, i] += h[:, i] * h[:, i + 1]
        out[:, i + 1] += torch.tanh(h[:, i])
    return out


@function("a state written step by step", weight=2)
def states_written(h, world):
    states = torch.zeros(3, N, D)
    states[0] = h
    for t in range(2):
        states[t + 1] = torch.tanh(states[t].clone() + h)
    return states[-1] + states[1]


@function("index_add_ and its like", weight=2)
def index_add(h, world):
    index = torch.tensor([0, 1, 1, 3])
    out = torch.zeros(N, D, dtype=h.dtype).index_add_(0, index, h)
    out = out.index_copy_(1, torch.tensor([2]), h[:, :1].sin())
    return out.scatter_add_(1, world.batch.tokens[:, :3].clamp(max=D - 1), h[:, :3] ** 2)


@function("index_put_ with accumulation")
def index_put(h, world):
    out = h * 0.5
    out.index_put_((world.batch.classes,), h.sin(), accumulate=True)
    out[world.batch.classes % 2 == 0] *= 2.0
    return out


@function("masked_fill_ and assignment by mask", smooth=False)
def masked_assignment(h, world):
    z = h * 1.5
    z[world.batch.vectors > 0.5] = 0.25
    z.masked_fill_(z < -1.0, -1.0)
    z[0] = world.batch.vectors[0]
    return z


@function("writes through views")
def writes_through_views(h, world):
    z = h.clone()
    flat = z.view(-1)
    flat[::2] *= 0.5
    z.T[1].add_(torch.sin(h[:, 0]))
    row, *_ = z.unbind(0)
    row = row * 2.0
    return z + row


@function("copy_, mul_, fill_, zero_, tanh_")
def other_writes(h, world):
    z = torch.empty_like(h)
    z.copy_(h).mul_(0.3)
    z[:, 0].fill_(world.knobs.scale)
    z[1, 1:].zero_()
    return z.sub_(h).add_(h.square(), alpha=0.1).tanh_()


@function("swap by copies")
def swap(h, world):
    z = h * 1.0
    first = z[:, 0].clone()
    z[:, 0] = z[:, 1]
    z[:, 1] = first * 2.0
    return z


@layer("a parameter written into a buffer")
def parameter_written(draw, world):
    def call(h, m):
        W = torch.zeros(D, D)
        W[0, :] = m.row
        W[1:, 1] += m.row[1:]
        W.diagonal().add_(1.0)
        return h @ W

    return With(call, world, row=weight(D))


# ---------------------------------------------------------------------- shapes and selections


@function("cat, split, stack", weight=2)
def cat_split_stack(h, world):
    a, b = h.split(2, dim=1)
    return torch.stack([b, a.tanh()], dim=2).flatten(1)


@function("unbind and iteration", weight=2)
def unbind(h, world):
    columns = [column.sin() for column in h.unbind(1)]
    rows = [row * (1.0 + 0.1 * i) for i, row in enumerate(h)]
    first, *others = torch.stack(rows).T
    return torch.stack([first, *columns[1:]], dim=1) + sum(others).unsqueeze(1)


@function("chunk, flip, roll, permute")
def moves(h, world):
    a, b = h.chunk(2, 1)
    z = torch.cat([b.flip(0), a.roll(world.knobs.shift, 0)], 1)
    return z.reshape(N, 2, 2).permute(0, 2, 1).reshape(N, D) + F.pad(h[:, 1:], (0, 1))


@function("triangles, cumsum, outer products")
def triangles(h, world):
    gram = torch.einsum("ni,mi->nm", h, h) / D
    return gram.tril() @ h + h.cumsum(0).tanh() + torch.outer(h[:, 0], h[0])


@function("gather and take_along_dim")
def gather(h, world):
    index = h.argsort(1)
    return h.gather(1, index.flip(1)) + h.take_along_dim(world.batch.classes.unsqueeze(1), 1)


@function("indices that are tensors")
def advanced_index(h, world):
    return h[torch.arange(N), world.batch.classes].unsqueeze(1) * h[world.batch.classes] + h[:, [3, 2, 1, 0]]


@function("where", smooth=False)
def where(h, world):
    return torch.where(world.batch.vectors > 0.0, h, h.sin()) + torch.where(h > 0.1, h * h, 0.0)


@function("sort, topk", smooth=False)
def sort(h, world):
    values, indices = h.sort(dim=1, descending=True)
    return values + h.topk(2, 1).values.repeat(1, 2) + indices


@function("max, cummax, median, amax", smooth=False)
def maxima(h, world):
    return h.cummax(0).values + h.max(1, keepdim=True).values * h.amax(0) + h.median(1, keepdim=True).values


@function("clamp, minimum, abs, sign", smooth=False)
def clamps(h, world):
    return h.clamp(-world.knobs.scale, 1.0) + torch.minimum(h, world.batch.vectors) + h.abs() * h.sign()


@function("selection by a mask of the data")
def masked_select(h, world):
    mask = torch.zeros(N, D, dtype=torch.bool)
    mask[:, :2] = True
    return h + h[mask].view(N, 2).sin().repeat(1, 2)


@function("selection by a mask of the features", smooth=False)
def masked_by_value(h, world):
    return h + h[h > 0.0].sum() * 0.1


# ---------------------------------------------------------------------- element-wise


@layer("element-wise function", group="plain", weight=4)
def elementwise(draw, world):
    options = {
        "sin": lambda h, w: h.sin(),
        "square": lambda h, w: h.square(),
        "bump": lambda h, w: torch.exp(-h * h),
        "rational": lambda h, w: h / (1.0 + h**2),
        "atan": lambda h, w: torch.atan(h),
        "log1p": lambda h, w: torch.log1p(h * h),
        "sqrt": lambda h, w: torch.sqrt(h**2 + 0.1),
        "rsub": lambda h, w: 1.0 - h.mul(0.5),
        "logsumexp": lambda h, w: h - h.logsumexp(1, keepdim=True),
        "normalised": lambda h, w: F.normalize(h, dim=1),
        "centred": lambda h, w: h - h.mean(0),
        "standardised": lambda h, w: (h - h.mean(0)) / (h.var(0, unbiased=False) + 0.5).sqrt(),
        "erf": lambda h, w: torch.erf(h) * 0.5 + torch.lerp(h, h.sin(), 0.3),
        "Swish by hand": lambda h, w: h * torch.sigmoid(w.knobs.scale * h),
        "multiplied by data": lambda h, w: h * w.batch.vectors + w.batch.vectors,
        "addcdiv": lambda h, w: torch.addcdiv(h, h.sin(), 1.0 + h.square(), value=0.5),
    }
    return Apply(world.choose(draw, options), world)


@function("constant: scale", weight=2)
def constant_scale(h, world):
    return h * world.knobs.scale + torch.tensor([world.knobs.scale] * D)


@function("constant: exponent and shift")
def constant_power(h, world):
    return 0.3 * h**world.knobs.power + h.roll(world.knobs.shift, 1)


@function("constant: branch", weight=2)
def constant_branch(h, world):
    return h.tanh() if world.knobs.on else h.sin() * 2.0


@function("constant: torch.full, NumPy scalar, keyword", smooth=False)
def constant_kinds(h, world):
    z = h * np.float64(world.knobs.scale) + torch.full((D,), world.knobs.scale)
    return F.softplus(z, beta=world.knobs.scale) + F.leaky_relu(h, negative_slope=0.1 * world.knobs.scale)


@function("item as scale", weight=2, exact=False)
def item_scale(h, world):
    return h / (1.0 + h.detach().abs().max().item()) + h.sum().item() * 0.01 * h.square()


@function("branch on a value", smooth=False)
def branch_on_value(h, world):
    return h.sin() * 2.0 if h.mean() > 0.0 else h.tanh()


@function("values by NumPy, tolist, float, str", exact=False)
def python_values(h, world):
    first = float(h[0, 0].detach()) + h.detach().double().numpy().max() + sum(h[0].tolist())
    world.log.append(f"{h.mean():.3f}")
    return h * (1.0 + 0.01 * first)


@function("data by NumPy")
def numpy_data(h, world):
    return h + torch.from_numpy(np.tanh(world.batch.vectors.numpy()))


@function("values of data")
def data_values(h, world):
    label = int(world.batch.classes[0])
    return h * (1.0 + 0.1 * world.batch.vectors.abs().max().item()) + h[:, label : label + 1]


@function("detached part", weight=2, exact=False)
def detached_part(h, world):
    return h * torch.sigmoid(h.detach()) + (h - h.data).sin()


@function("part without gradients", weight=2, exact=False)
def no_grad_part(h, world):
    with torch.no_grad():
        centre = h.mean(0, keepdim=True)
        centre += 0.1
    return (h - centre).tanh() + h


@layer("running statistics", exact=False)
def running_statistics(draw, world):
    def call(h, m):
        with torch.no_grad():
            m.statistics.value.mul_(0.9).add_(0.1 * h.mean(0))
        return h - m.statistics.value

    return With(call, world, statistics=Constant(torch.randn(D)))


@function("tensors made of data inside", weight=2)
def made_of_data(h, world):
    mask = (world.batch.vectors > 0.0).to(h.dtype)
    positions = torch.arange(D) / D + torch.linspace(0.0, 1.0, N).unsqueeze(1) + torch.eye(N)
    return h * mask + torch.sin(positions) * h + F.one_hot(world.batch.classes, D)


@function("its own generator")
def own_generator(h, world):
    return h + torch.randn(N, D, generator=torch.Generator().manual_seed(3), dtype=torch.float64).to(h.dtype)


@layer("random numbers", weight=2, draws=True)
def random_numbers(draw, world):
    options = {
        "randn_like": lambda h, w: h + 0.3 * torch.randn_like(h),
        "rand": lambda h, w: h * torch.rand(N, 1),
        "bernoulli": lambda h, w: h * torch.bernoulli(torch.full((D,), 0.6)),
        "randperm": lambda h, w: h + h[torch.randperm(N)].sin(),
        "Gumbel": lambda h, w: F.gumbel_softmax(h, tau=1.0),
        "normal_": lambda h, w: h + torch.empty_like(h).normal_(0.0, 0.1),
        "randint": lambda h, w: h + torch.randint(3, (N, 1)) * 0.2,
    }
    return Apply(world.choose(draw, options), world)


# ---------------------------------------------------------------------- complex numbers, linear algebra


@layer("complex intermediates", weight=2)
def complex_intermediates(draw, world):
    options = {
        "rfft, abs": lambda h, w: torch.fft.rfft(h, n=6).abs(),
        "fft, parts": lambda h, w: torch.cat([(f := torch.fft.fft(h)).real[:, :2], f.imag[:, :2]], 1),
        "rfft and back": lambda h, w: torch.fft.irfft(torch.fft.rfft(h) * (1.0 + 0.5j), n=D),
        "view_as_complex": lambda h, w: torch.view_as_real(torch.view_as_complex(h.reshape(N, 2, 2)) ** 2).flatten(1),
        "polar": lambda h, w: torch.polar(h.exp(), h).real,
        "complex": lambda h, w: (torch.complex(h, h.sin()).exp() * 1j).real,
        "conjugate": lambda h, w: ((f := torch.fft.fft(h)) * f.conj()).real / D,
    }
    return Apply(world.choose(draw, options), world)


@layer("linear algebra")
def linear_algebra(draw, world):
    def definite(h):
        return torch.eye(D, dtype=h.dtype) + 0.1 * h.T @ h

    options = {
        "solve": lambda h, w: torch.linalg.solve(definite(h), h.T).T,
        "inv": lambda h, w: h @ torch.linalg.inv(definite(h)),
        "cholesky": lambda h, w: h @ torch.linalg.cholesky(definite(h)),
        "logdet": lambda h, w: h * torch.logdet(definite(h)),
        "matrix_exp": lambda h, w: h @ torch.matrix_exp(0.1 * h.T @ h),
        "norm": lambda h, w: h / (1.0 + torch.linalg.vector_norm(h, dim=1, keepdim=True)),
        "eigvalsh": lambda h, w: h * torch.linalg.eigvalsh(definite(h) + torch.diag(torch.arange(D, dtype=h.dtype))),
    }
    return Apply(world.choose(draw, options), world)


# ---------------------------------------------------------------------- custom Functions


class Cube(torch.autograd.Function):
    """With a backward that can be differentiated."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return 3.0 * x * x * grad


class ScaledSine(torch.autograd.Function):
    """With a constant argument, and the context set up apart."""

    @staticmethod
    def forward(x, scale):
        return torch.sin(scale * x)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[0])
        ctx.scale = inputs[1]

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad * ctx.scale * torch.cos(ctx.scale * x), None


class WithForwardDerivative(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        ctx.save_for_forward(x)
        return x.sin()

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.saved_tensors[0].cos()

    @staticmethod
    def jvp(ctx, tangent):
        return tangent * ctx.saved_tensors[0].cos()


class TwoResults(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, y):
        ctx.save_for_backward(x, y)
        return x * y, x + y

    @staticmethod
    def backward(ctx, product, total):
        x, y = ctx.saved_tensors
        return product * y + total, product * x + total


class InPlace(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.mark_dirty(x)
        return x.mul_(2.0)

    @staticmethod
    def backward(ctx, grad):
        return grad * 2.0


class StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return torch.round(4.0 * x) / 4.0

    @staticmethod
    def backward(ctx, grad):
        return grad


class Reversed(torch.autograd.Function):
    """The gradient comes back with another sign, as in adversarial training."""

    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        return -0.5 * grad


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.tanh()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        return grad * (1.0 - ctx.saved_tensors[0].tanh() ** 2)


CUSTOM = {
    "plain": Cube.apply,
    "with a forward derivative": WithForwardDerivative.apply,
    "two results": lambda x: sum(TwoResults.apply(x, x.sin())),
    "dirty": lambda x: InPlace.apply(x * 1.5),
}


@layer("custom Function", weight=3)
def custom_function(draw, world):
    apply = world.choose(draw, CUSTOM)
    return Apply(lambda h, world: 0.5 * apply(h), world)


@function("custom Function with a constant")
def custom_function_with_constant(h, world):
    return ScaledSine.apply(h, world.knobs.scale)


@layer("custom Function of a parameter", weight=3)
def custom_function_of_parameter(draw, world):
    options = {
        "Cube.apply": lambda p: Cube.apply(p),
        "apply bound before": Cube.apply,
        "with a constant": lambda p: ScaledSine.apply(p, world.knobs.scale),
        "two parameters": lambda p: TwoResults.apply(p, p)[0],
        "also used without": lambda p: Cube.apply(p) + 0.5 * p,
    }
    apply = world.choose(draw, options)
    return With(lambda h, m: F.linear(h, apply(m.W)), world, W=weight(D, D))


@layer("rounding, straight through", smooth=False, exact=False)
def straight_through(draw, world):
    options = {
        "Function": StraightThrough.apply,
        "detach": lambda h: h + (torch.round(4.0 * h) / 4.0 - h).detach(),
    }
    apply = world.choose(draw, options)
    return Apply(lambda h, world: apply(h), world)


@layer("rounded weight, straight through", smooth=False, exact=False)
def straight_through_weight(draw, world):
    return With(lambda h, m: F.linear(h, StraightThrough.apply(m.W)), world, W=weight(D, D))


@function("gradient reversal", exact=False)
def gradient_reversal(h, world):
    return h.sin() + Reversed.apply(h)


@layer("once differentiable Function")
def once(draw, world):
    apply = torch.tanh if world.exact else Once.apply
    options = {"of the features": lambda h, m: apply(h), "of a parameter": lambda h, m: h * apply(m.p)}
    return With(world.choose(draw, options), world, p=weight(D))


# ---------------------------------------------------------------------- hooks


@layer("hook on features", weight=2, exact=False)
def scaling_hook(draw, world):
    options = {
        "halves the gradient": lambda g: 0.5 * g,
        "masks the gradient": lambda g: g * (torch.arange(D) % 2),
        "reverses the gradient": lambda g: -g,
    }
    hook = world.choose(draw, options)

    def call(h, world):
        h = h * 1.0
        if h.requires_grad:
            h.register_hook(hook)
        return h

    return Apply(call, world)


@function("hook that looks", weight=2)
def logging_hook(h, world):
    h = h.tanh()
    if h.requires_grad:
        h.register_hook(lambda g: world.log.append(g.detach()))
        h.register_hook(lambda g: g.clamp(-1e6, 1e6))
    return h


@function("hook that was removed")
def removed_hook(h, world):
    h = h.sin()
    if h.requires_grad:
        h.register_hook(lambda g: 3.0 * g).remove()
    return h


@function("hook that clips", exact=False, smooth=False, weight=0.5)
def clipping_hook(h, world):
    def clip(g):
        world.clipped = True
        return g.clamp(-1e-3, 1e-3)

    h = h * 1.0
    if h.requires_grad:
        h.register_hook(clip)
    return h


@function("retain_grad")
def retain_grad(h, world):
    h = h.sin()
    if h.requires_grad:
        h.retain_grad()
    return h


@layer("module hooks", weight=2)
def module_hooks(draw, world):
    inner = nn.Linear(D, D)
    options = {
        "forward, changes": lambda: inner.register_forward_hook(lambda m, x, y: y * 1.5 + x[0]),
        "forward, looks": lambda: inner.register_forward_hook(lambda m, x, y: world.log.append(y.detach())),
        "before, changes": lambda: inner.register_forward_pre_hook(lambda m, x: (x[0].sin(),)),
        "backward, looks": lambda: inner.register_full_backward_hook(lambda m, i, o: world.log.append(o[0])),
        "forward, keeps the graph": lambda: inner.register_forward_hook(lambda m, x, y: world.log.append(y)),
    }
    world.choose(draw, options)()
    return inner


@layer("module hook on gradients", exact=False)
def module_hook_on_gradients(draw, world):
    inner = nn.Linear(D, D)
    inner.register_full_backward_hook(lambda m, into, out: (None if into[0] is None else 0.5 * into[0],))
    return inner


@function("logs")
def logs(h, world):
    world.log.extend([h.detach(), h, h.mean().item(), h.detach().norm()])
    return h * 1.0
