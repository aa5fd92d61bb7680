"""Kinds of models: each has the right products, or is refused by name. None is silently wrong.

The truth is another definition of the GGN: the Hessian of the loss of the model linearised at θ, with a Jacobian built
row by row by plain reverse differentiation, in float64.
"""

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from latephase.curvature import CurvatureError, ggn

N, C = 4, 3


pytestmark = pytest.mark.usefixtures("float64", "no_memory")


class Kind(NamedTuple):
    """A model with inputs; `rung` is how its products are expected to be computed."""

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[], torch.Tensor]
    rung: str = "linearize"
    training: bool = False
    loss: Callable = F.cross_entropy
    targets: Callable = lambda: torch.randint(C, (N,))


def vectors():
    return torch.randn(N, 6)


def sequences():
    return torch.randn(N, 5, 6)


def images():
    return torch.randn(N, 2, 6, 6)


def tokens():
    return torch.randint(10, (N, 5))


class Sequence(nn.Module):
    """A layer over sequences, and a linear layer on the mean over time."""

    def __init__(self, layer, width=6):
        super().__init__()
        self.layer, self.out = layer, nn.Linear(width, C)

    def forward(self, x):
        y = self.layer(x)
        return self.out((y[0] if isinstance(y, tuple) else y).mean(1))


class Function(nn.Module):
    """A linear layer, a function of its output, and another linear layer."""

    def __init__(self, function, width=6, out=6):
        super().__init__()
        self.function, self.first, self.last = function, nn.Linear(6, width), nn.Linear(out, C)

    def forward(self, x):
        return self.last(self.function(self.first(x)))


class Attention(nn.Module):
    def __init__(self, *backends):
        super().__init__()
        self.backends, self.project = backends, nn.Linear(6, 18)

    def forward(self, x):
        q, k, v = self.project(x).unsqueeze(1).chunk(3, -1)
        if not self.backends:
            return F.scaled_dot_product_attention(q, k, v).squeeze(1)
        with sdpa_kernel(list(self.backends)):
            return F.scaled_dot_product_attention(q, k, v).squeeze(1)


class SelfAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)

    def forward(self, x):
        return self.attention(x, x, x, need_weights=False)[0]


class Cube(torch.autograd.Function):
    """Without a forward derivative."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return 3.0 * x * x * grad


class Complex(nn.Module):
    def __init__(self):
        super().__init__()
        self.phase = nn.Parameter(torch.ones(6, dtype=torch.complex128))

    def forward(self, x):
        return (x * self.phase).real


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.out = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, C)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.out(torch.tanh(self.b(torch.tanh(self.a(x)))))


class Checkpointed(nn.Module):
    def __init__(self, use_reentrant):
        super().__init__()
        self.first, self.last, self.use_reentrant = nn.Linear(6, 6), nn.Linear(6, C), use_reentrant

    def forward(self, x):
        x = x.clone().requires_grad_()
        return self.last(checkpoint(lambda h: torch.tanh(self.first(h)), x, use_reentrant=self.use_reentrant))


class GridSample(nn.Module):
    def __init__(self):
        super().__init__()
        self.theta, self.out = nn.Linear(6, 6), nn.Linear(2 * 36, C)
        self.image: torch.Tensor
        self.register_buffer("image", torch.randn(N, 2, 6, 6))

    def forward(self, x):
        grid = F.affine_grid(self.theta(x).view(-1, 2, 3), [N, 2, 6, 6], align_corners=False)
        return self.out(F.grid_sample(self.image, grid, align_corners=False).flatten(1))


class Distances(nn.Module):
    def __init__(self):
        super().__init__()
        self.centres = nn.Parameter(torch.randn(C, 6))

    def forward(self, x):
        return -torch.cdist(x, self.centres)


class Residual(nn.Module):
    """A PINN's residual: a derivative of the network with respect to its input."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, x):
        x = x.clone().requires_grad_()
        u = self.net(x)
        (du,) = torch.autograd.grad(u.sum(), x, create_graph=True)
        laplacian = sum(torch.autograd.grad(du[:, i].sum(), x, create_graph=True)[0][:, i] for i in range(2))
        return laplacian + torch.sin(u.squeeze(1))


class ReadsValues(nn.Module):
    """Takes values out of tensors: for logging, to scale, to branch."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(6, 6), nn.Linear(6, C)

    def forward(self, x):
        y = self.first(x)
        scale = y.detach().abs().max().item()
        return self.last(torch.tanh(y / scale) if scale > 0.1 else y)


class SlicedInPlace(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(6, 6), nn.Linear(6, C)

    def forward(self, x):
        y = torch.sin(self.first(x))
        z = y * 2.0
        z[:, :3] *= 2.0
        z[:, 3:] += y[:, :3]
        z += 1.0
        return self.last(torch.tanh(z))


class Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        self.out = nn.Linear(6, C)

    def forward(self, x):
        return self.out(x + torch.randn_like(x)) * torch.rand(N, 1)


class MixtureOfExperts(nn.Module):
    """Routes by a comparison, gathers and scatters."""

    def __init__(self):
        super().__init__()
        self.gate, self.a, self.b = nn.Linear(6, 2), nn.Linear(6, C), nn.Linear(6, C)

    def forward(self, x):
        gate = self.gate(x).softmax(-1)
        return torch.where(gate.argmax(-1, keepdim=True) == 0, gate[:, :1] * self.a(x), gate[:, 1:] * self.b(x))


class LowRank(nn.Module):
    """A frozen layer with a trained correction of low rank, between frozen normalisations."""

    def __init__(self):
        super().__init__()
        self.before, self.after = frozen(nn.LayerNorm(6)), frozen(nn.LayerNorm(6))
        self.layer, self.out = frozen(nn.Linear(6, 6)), frozen(nn.Linear(6, C))
        self.a, self.b = nn.Parameter(torch.randn(2, 6)), nn.Parameter(torch.randn(6, 2))

    def forward(self, x):
        h = self.before(x)
        return self.out(self.after(torch.tanh(self.layer(h) + h @ self.a.T @ self.b.T)))


class Modulated(nn.Module):
    """A normalisation whose affine parameters come from elsewhere, one of them trained."""

    def __init__(self):
        super().__init__()
        self.first, self.shift, self.out = nn.Linear(6, 6), nn.Parameter(torch.randn(6)), nn.Linear(6, C)
        self.scale: torch.Tensor
        self.register_buffer("scale", torch.rand(6) + 0.5)

    def forward(self, x):
        return self.out(torch.tanh(F.layer_norm(self.first(x), (6,), weight=self.scale, bias=self.shift)))


def frozen(module, but=""):
    for name, p in module.named_parameters():
        with torch.no_grad():
            p.uniform_(0.5, 1.5)
        p.requires_grad_(name == but)
    return module


def mlp(*between):
    return nn.Sequential(nn.Linear(6, 6), *(between or (nn.Tanh(),)), nn.Linear(6, C))


def convolutional(*between):
    return nn.Sequential(nn.Conv2d(2, 4, 3), *between, nn.Flatten(), nn.LazyLinear(C))


def channels_last():
    layers = nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, C)
    return nn.Sequential(*layers).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def non_contiguous():
    model = mlp()
    model[0].weight = nn.Parameter(torch.randn(6, 6).t())
    assert not model[0].weight.is_contiguous()
    return model


def parametrized(parametrization):
    return nn.Sequential(parametrization(nn.Linear(6, 6)), nn.Tanh(), nn.Linear(6, C))


def compiled():
    return torch.compile(mlp(), backend="eager")


def shared():
    layer = nn.Linear(6, 6)
    return nn.Sequential(layer, nn.Tanh(), layer, nn.Tanh(), nn.Linear(6, C))


MATH = "linearize, math kernels"
KINDS = [
    Kind("MLP", mlp, vectors),
    Kind("GELU", lambda: mlp(nn.GELU()), vectors),
    Kind("ReLU in place", lambda: mlp(nn.ReLU(inplace=True)), vectors),
    Kind("SiLU and softplus", lambda: mlp(nn.SiLU(), nn.Softplus()), vectors),
    Kind("convolution", lambda: convolutional(nn.ReLU()), images),
    Kind("max pooling", lambda: convolutional(nn.ReLU(), nn.MaxPool2d(2)), images),
    Kind("average pooling", lambda: convolutional(nn.AvgPool2d(2)), images),
    Kind("adaptive pooling", lambda: convolutional(nn.AdaptiveAvgPool2d(2)), images),
    Kind("transposed convolution", lambda: convolutional(nn.ConvTranspose2d(4, 2, 3)), images),
    Kind("grouped, dilated convolution", lambda: convolutional(nn.Conv2d(4, 4, 2, groups=2, dilation=2)), images),
    Kind("interpolation", lambda: convolutional(nn.Upsample(scale_factor=2, mode="bilinear")), images),
    Kind("channels-last weights", channels_last, images),
    Kind("BatchNorm, eval", lambda: convolutional(nn.BatchNorm2d(4), nn.ReLU()), images),
    Kind("BatchNorm, train", lambda: convolutional(nn.BatchNorm2d(4), nn.ReLU()), images, training=True),
    Kind("BatchNorm1d, train", lambda: mlp(nn.BatchNorm1d(6), nn.Tanh()), vectors, training=True),
    Kind("LayerNorm", lambda: mlp(nn.LayerNorm(6)), vectors),
    Kind("RMSNorm", lambda: mlp(nn.RMSNorm(6)), vectors),
    Kind("GroupNorm", lambda: convolutional(nn.GroupNorm(2, 4), nn.GELU()), images),
    Kind("InstanceNorm", lambda: convolutional(nn.InstanceNorm2d(4, affine=True)), images),
    Kind("dropout, train", lambda: mlp(nn.Tanh(), nn.Dropout(0.5)), vectors, training=True),
    Kind("dropout of channels, train", lambda: convolutional(nn.Dropout2d(0.5)), images, training=True),
    Kind("random numbers", Noisy, vectors),
    Kind("frozen LayerNorm", lambda: mlp(frozen(nn.LayerNorm(6)), nn.Tanh()), vectors),
    Kind("LayerNorm, bias trained", lambda: mlp(frozen(nn.LayerNorm(6), but="bias"), nn.Tanh()), vectors),
    Kind("frozen RMSNorm", lambda: mlp(frozen(nn.RMSNorm(6))), vectors),
    Kind("frozen BatchNorm, eval", lambda: convolutional(frozen(nn.BatchNorm2d(4)), nn.ReLU()), images),
    Kind("frozen BatchNorm, train", lambda: convolutional(frozen(nn.BatchNorm2d(4))), images, training=True),
    Kind("frozen GroupNorm", lambda: convolutional(frozen(nn.GroupNorm(2, 4)), nn.GELU()), images),
    Kind("frozen InstanceNorm", lambda: convolutional(frozen(nn.InstanceNorm2d(4, affine=True))), images),
    Kind(
        "LayerNorm behind a frozen layer",
        lambda: nn.Sequential(frozen(nn.Linear(6, 6)), *mlp(nn.LayerNorm(6))),
        vectors,
    ),
    Kind("LoRA", LowRank, vectors),
    Kind("FiLM", Modulated, vectors),
    Kind("embedding", lambda: nn.Sequential(nn.Embedding(10, 6), Sequence(nn.Identity())), tokens),
    Kind("sparse embedding", lambda: nn.Sequential(nn.Embedding(10, 6, sparse=True), Sequence(nn.Identity())), tokens),
    Kind("LSTM", lambda: Sequence(nn.LSTM(6, 6, batch_first=True)), sequences),
    Kind("LSTM, two layers", lambda: Sequence(nn.LSTM(6, 3, 2, bidirectional=True, batch_first=True)), sequences),
    Kind("GRU", lambda: Sequence(nn.GRU(6, 6, batch_first=True)), sequences),
    Kind("RNN", lambda: Sequence(nn.RNN(6, 6, batch_first=True)), sequences),
    Kind("attention, default", lambda: Sequence(Attention()), sequences, rung=MATH),
    Kind("attention, math", lambda: Sequence(Attention(SDPBackend.MATH)), sequences),
    Kind("MultiheadAttention", lambda: Sequence(SelfAttention()), sequences, rung=MATH),
    Kind(
        "TransformerEncoderLayer, train",
        lambda: Sequence(nn.TransformerEncoderLayer(6, 2, 8, batch_first=True)),
        sequences,
        training=True,
    ),
    Kind(
        "TransformerEncoder, eval",
        lambda: Sequence(nn.TransformerEncoder(nn.TransformerEncoderLayer(6, 2, 8, batch_first=True), 2)),
        sequences,
        rung=MATH,
    ),
    Kind("weight_norm", lambda: parametrized(nn.utils.parametrizations.weight_norm), vectors, rung="double-backward"),
    Kind("spectral_norm, eval", lambda: parametrized(nn.utils.parametrizations.spectral_norm), vectors),
    Kind(
        "spectral_norm, train",
        lambda: parametrized(nn.utils.parametrizations.spectral_norm),
        vectors,
        training=True,
    ),
    Kind("orthogonal", lambda: parametrized(nn.utils.parametrizations.orthogonal), vectors),
    Kind("tied weights", Tied, vectors),
    Kind("shared submodule", shared, vectors),
    Kind("non-contiguous parameter", non_contiguous, vectors),
    Kind("checkpointing", lambda: Checkpointed(False), vectors),
    Kind("custom Function", lambda: Function(Cube.apply), vectors, rung="double-backward"),
    Kind("grid_sample", GridSample, vectors, rung="double-backward"),
    Kind("FFT", lambda: Function(lambda x: torch.fft.rfft(x).abs(), out=4), vectors),
    Kind(
        "matrix inverse", lambda: Function(lambda x: torch.linalg.solve(torch.eye(6) + 0.1 * x.T @ x, x.T).T), vectors
    ),
    Kind("sort and top-k", lambda: Function(lambda x: x.sort(-1).values.topk(6).values), vectors),
    Kind("einsum and scatter", lambda: Function(lambda x: torch.einsum("ni,mi->nm", x, x) @ x), vectors),
    Kind("writes into slices", SlicedInPlace, vectors),
    Kind("values read by Python", ReadsValues, vectors),
    Kind("routing", MixtureOfExperts, vectors),
    Kind("compiled module", compiled, vectors),
    Kind(
        "PINN",
        Residual,
        lambda: torch.rand(N, 2),
        loss=F.mse_loss,
        targets=lambda: torch.zeros(N),
    ),
]

SINCE = {"checkpointing": "2.13", "grid_sample": "2.13"}  # the torch from which on it goes the way that KINDS says

REFUSED = [
    (Kind("EmbeddingBag", lambda: nn.Sequential(nn.EmbeddingBag(10, 6), nn.Linear(6, C)), tokens), "_embedding_bag"),
    (Kind("cdist", Distances, vectors), "_cdist_forward"),
    (Kind("reentrant checkpointing", lambda: Checkpointed(True), vectors), "use_reentrant=False"),
    (Kind("complex parameter", lambda: nn.Sequential(Complex(), nn.Linear(6, C)), vectors), "torch.view_as_real"),
]


def problem(kind):
    model, inputs, targets = kind.build(), kind.inputs(), kind.targets()
    model.eval()(inputs)  # lazy layers, and spectral_norm's first iteration
    model.train(kind.training)

    def forward():
        outputs = model(inputs)
        return kind.loss(outputs, targets), outputs

    return model, forward, [p for p in model.parameters() if p.requires_grad], lambda z: kind.loss(z, targets)


def hessian_of_linearised_loss(forward, params, loss):
    """The GGN by its definition through the linearised model, a dense matrix."""
    _, outputs = forward()
    flat = outputs.reshape(-1)
    rows = [torch.autograd.grad(z, params, retain_graph=True, allow_unused=True) for z in flat]
    jacobian = torch.stack(
        [
            torch.cat(
                [
                    (torch.zeros_like(p) if g is None else g.to_dense()).reshape(-1)
                    for g, p in zip(row, params, strict=True)
                ]
            )
            for row in rows
        ]
    )
    here = outputs.detach()
    linearised = lambda step: loss(here + (jacobian @ step).view_as(here))  # noqa: E731
    return torch.func.hessian(linearised)(torch.zeros(jacobian.shape[1]))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_products_are_those_of_the_linearised_model(kind):
    if kind.name in SINCE and torch.__version__ < SINCE[kind.name]:
        pytest.skip(f"torch {torch.__version__} takes another way here, or refuses it by name")
    model, forward, params, loss = problem(kind)
    rng, buffers = torch.get_rng_state(), [b.clone() for b in model.buffers()]
    operator = ggn(forward, params)
    after = torch.get_rng_state(), [b.clone() for b in model.buffers()]

    torch.set_rng_state(rng)
    for buffer, value in zip(model.buffers(), buffers, strict=True):
        buffer.data.copy_(value)
    expected = hessian_of_linearised_loss(forward, params, loss)
    assert torch.equal(torch.get_rng_state(), after[0]), "the stream must be left as one forward pass leaves it"
    assert all(map(torch.equal, model.buffers(), after[1])), "buffers must be left as one forward pass leaves them"

    v = torch.randn(expected.shape[0], 4)
    assert expected.norm() > 0.0
    assert (operator @ v - expected @ v).norm() <= 1e-8 * (expected @ v).norm(), operator.explain()
    assert operator.backend == kind.rung, operator.explain()


@pytest.mark.parametrize(("kind", "name"), REFUSED, ids=lambda value: getattr(value, "name", None))
def test_refused_by_name(kind, name):
    _, forward, params, _ = problem(kind)
    with pytest.raises((CurvatureError, RuntimeError, TypeError), match=name):
        ggn(forward, params)


def test_bfloat16_autocast():
    """Rounding is that of bfloat16, so agreement is too; the parameters and the products stay float32."""
    model, inputs = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, C)).float(), vectors().float()
    targets = torch.randint(C, (N,))

    def forward():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            outputs = model(inputs)
        assert outputs.dtype == torch.bfloat16
        return F.cross_entropy(outputs.float(), targets), outputs

    v = torch.randn(sum(p.numel() for p in model.parameters()), 4)
    operator = ggn(forward, list(model.parameters()))
    product = operator @ v.float()
    assert product.dtype == torch.float32
    model, inputs = model.double(), inputs.double()

    def exact():
        outputs = model(inputs)
        return F.cross_entropy(outputs, targets), outputs

    expected = hessian_of_linearised_loss(exact, list(model.parameters()), lambda z: F.cross_entropy(z, targets)) @ v
    assert (product - expected).norm() <= 0.02 * expected.norm(), operator.explain()
