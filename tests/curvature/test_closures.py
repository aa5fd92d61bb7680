"""Closures as people write them: right curvature, or a refusal by name; never a stale or a silently wrong one."""

import contextlib
import dataclasses
import sys

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn
from torch.autograd.function import once_differentiable

from latephase.curvature import CurvatureError, CurvatureWarning, ggn, hessian

N = 6
GGN_MODULE = sys.modules["latephase.curvature.ggn"]  # the package's function of that name hides it


pytestmark = pytest.mark.usefixtures("float64", "no_memory")


def rows(tensor, params):
    """A Jacobian, row by row by plain reverse differentiation, shape (entries, P)."""
    grads = [torch.autograd.grad(z, params, retain_graph=True, allow_unused=True) for z in tensor.reshape(-1)]
    return torch.stack([flat(grad, params) for grad in grads])


def flat(grads, params):
    return torch.cat(
        [(torch.zeros_like(p) if g is None else g).reshape(-1) for g, p in zip(grads, params, strict=True)]
    )


def true_ggn(outputs, loss_of_outputs, params):
    """JᵀHJ with the outputs as independent variables of the loss."""
    J = torch.cat([rows(z, params) for z in outputs]).detach()

    def loss(z):
        pieces = z.split([o.numel() for o in outputs])
        return loss_of_outputs([piece.view(o.shape) for piece, o in zip(pieces, outputs, strict=True)])

    here = torch.cat([z.detach().reshape(-1) for z in outputs])
    return J.T @ torch.autograd.functional.hessian(loss, here) @ J


def true_hessian(loss, params):
    grads = torch.autograd.grad(loss, params, create_graph=True, allow_unused=True)
    return rows(flat(grads, params), params).detach()


def matrix(operator):
    return operator @ torch.eye(operator._parameters.numel)


def assert_right(operator, truth, tolerance=1e-9):
    assert truth.norm() > 0.0
    assert (matrix(operator) - truth).norm() <= tolerance * truth.norm(), operator.explain()


def data(inputs=5, outputs=3):
    return torch.randn(N, inputs), torch.randn(N, outputs), torch.randint(outputs, (N,))


def trainable(*modules):
    return [p for module in modules for p in module.parameters() if p.requires_grad]


# ---------------------------------------------------------------------- which loss, which outputs


@pytest.mark.parametrize("kinds", [("cross", "quartic"), ("quartic", "cross"), ("sum", "cross")])
def test_which_of_the_computed_losses_is_returned(kinds):
    """All of them are computed each time, as where they are logged; only what is returned changes."""
    model, (x, _, t) = nn.Linear(5, 3), data()
    losses = {"cross": lambda z: F.cross_entropy(z / 3, t), "quartic": lambda z: (z**4).mean()}
    losses["sum"] = lambda z: losses["cross"](z) + losses["quartic"](z)
    for kind in (*kinds, kinds[0]):

        def forward(kind=kind):
            z = model(x)
            return {name: loss(z) for name, loss in losses.items()}[kind], z

        truth = true_ggn([model(x)], lambda z, kind=kind: losses[kind](z[0]), trainable(model))
        assert_right(ggn(forward, model.parameters()), truth)


def test_which_of_the_computed_tensors_are_returned_as_outputs():
    a, b, (x, _, t) = nn.Linear(5, 4), nn.Linear(4, 3), data()
    params = trainable(a, b)
    for which in (0, 1, 0, 2):

        def forward(which=which):
            h = torch.tanh(a(x))
            z = b(h)
            return F.cross_entropy(z, t), (z, h, (h, z))[which]

        h = torch.tanh(a(x))
        if which == 1:
            with pytest.warns(CurvatureWarning, match="does not lead through the outputs"):
                operator = ggn(forward, params)  # past h, b's parameters reach the loss
            assert_right(operator, true_ggn([h], lambda z: F.cross_entropy(b(z[0]), t), params))
        else:
            assert_right(ggn(forward, params), true_ggn([b(h)], lambda z: F.cross_entropy(z[0], t), params))


# ---------------------------------------------------------------------- outputs made from one another


def features(a, b, x, t):
    h = torch.tanh(a(x))
    return [b(h), h], lambda o: F.cross_entropy(o[0], t) + 0.1 * o[1].pow(2).mean()


def autoencoder(a, b, x, t):
    code = a(x)
    mu, logvar = code[:, :2], code[:, 2:]
    noise = torch.linspace(-1.0, 1.0, 2 * N).view(N, 2)
    reconstruction = b(torch.cat([mu + noise * (0.5 * logvar).exp(), logvar], 1))

    def loss(o):
        return F.mse_loss(o[0], x[:, :3]) - 0.5 * (1 + o[2] - o[1].pow(2) - o[2].exp()).sum(1).mean()

    return [reconstruction, mu, logvar], loss


def refined(a, b, x, t):
    h = torch.tanh(a(x))
    first = b(h)
    second = first + 0.3 * torch.sin(first)
    third = second * torch.tanh(first)
    return [third, first, second], lambda o: sum(F.cross_entropy(z, t) for z in o) + (o[0] * o[1] * o[2]).mean()


def derivative(a, b, x, t):
    points = x.clone().requires_grad_()
    u = b(torch.tanh(a(points)))
    (u_x,) = torch.autograd.grad(u.sum(), points, create_graph=True)
    return [u, u_x], lambda o: (o[1][:, 0] + o[0][:, 0] * o[1][:, 1]).pow(2).mean() + o[0].pow(4).mean()


def noise_of_its_own(a, b, x, t):
    z = b(torch.tanh(a(x)) * b.bias.sum())
    return [z, b.bias], lambda o: (((o[0] - x[:, :3]) / o[1].exp()) ** 2).mean() + o[1].mean()


@pytest.mark.parametrize("make", [features, autoencoder, refined, derivative, noise_of_its_own])
@pytest.mark.parametrize("rung", ["linearize", "double-backward"])
@pytest.mark.parametrize("reverse", [False, True])
def test_outputs_that_depend_on_one_another(make, rung, reverse, monkeypatch):
    a, b, (x, _, t) = nn.Linear(5, 4), nn.Linear(4, 3), data()
    params = trainable(a, b)
    if rung == "double-backward":
        monkeypatch.setattr(GGN_MODULE, "trace", lambda *_: (_ for _ in ()).throw(RuntimeError("no trace")))

    def forward():
        outputs, loss = make(a, b, x, t)
        return loss(outputs), outputs[::-1] if reverse else outputs

    operator = ggn(forward, params)
    assert operator.backend == rung
    outputs, loss = make(a, b, x, t)
    assert_right(operator, true_ggn(outputs, loss, params))
    assert_right(hessian(forward, params), true_hessian(forward()[0], params))


# ---------------------------------------------------------------------- custom Functions


class Sine(torch.autograd.Function):
    """With a backward pass that has no graph."""

    @staticmethod
    def forward(ctx, a):
        ctx.save_for_backward(a)
        return a.sin()

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        return g * ctx.saved_tensors[0].cos()


class FusedSquares(torch.autograd.Function):
    """A loss that computes its gradient in the forward pass, as fused losses do."""

    @staticmethod
    def forward(ctx, z):
        ctx.save_for_backward(2.0 * z / z.numel())
        return z.square().mean()

    @staticmethod
    def backward(ctx, g):
        return g * ctx.saved_tensors[0]


class FusedLinear(torch.autograd.Function):
    """A layer and its loss in one, gradients saved."""

    @staticmethod
    def forward(ctx, h, w):
        z = h @ w.T
        ctx.save_for_backward((2.0 * z / z.numel()) @ w, (2.0 * z / z.numel()).T @ h)
        return z.square().mean()

    @staticmethod
    def backward(ctx, g):
        return g * ctx.saved_tensors[0], g * ctx.saved_tensors[1]


@pytest.mark.parametrize("curvature", [ggn, hessian])
@pytest.mark.parametrize("function", [Sine, FusedSquares, FusedLinear])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_backward_pass_without_a_graph_is_refused_by_name(curvature, function, dtype):
    x, w, u = (t.to(dtype) for t in (torch.randn(8, 4), torch.randn(3, 4), torch.randn(2, 3)))
    w, u = nn.Parameter(w), nn.Parameter(u)

    def forward():
        z = torch.tanh(x @ w.T)
        if function is Sine:
            z = Sine.apply(z)
            return (z**2).mean(), z
        return (FusedSquares.apply(z), z) if function is FusedSquares else (FusedLinear.apply(z, u), z)

    with pytest.raises(CurvatureError, match=function.__name__):
        curvature(forward, [w])


class Linear(torch.autograd.Function):
    """The example of PyTorch's page on extending it."""

    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return x @ w.t()

    @staticmethod
    def backward(ctx, g):
        x, w = ctx.saved_tensors
        return g @ w, g.t() @ x


class Scaled(torch.autograd.Function):
    """With `setup_context`, and a forward derivative that depends on a setting."""

    factor = 1.0

    @staticmethod
    def forward(w):
        return Scaled.factor * w

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.factor = Scaled.factor

    @staticmethod
    def backward(ctx, g):
        return ctx.factor * g

    @staticmethod
    def jvp(ctx, tangent):
        return ctx.factor * tangent


class Rounded(torch.autograd.Function):
    """Straight-through rounding, as for training with quantised weights."""

    @staticmethod
    def forward(ctx, w):
        return torch.round(8 * w) / 8

    @staticmethod
    def backward(ctx, g):
        return g


bound_before = Rounded.apply

ON_PARAMETERS = {
    "Linear": lambda x, w: Linear.apply(x, w),
    "rounded": lambda x, w: torch.tanh(F.linear(x, Rounded.apply(w))),
    "rounded, bound before": lambda x, w: F.linear(x, bound_before(w)),
    "rounded by detach": lambda x, w: F.linear(x, w + (torch.round(8 * w) / 8 - w).detach()),
    "setup_context": lambda x, w: torch.tanh(x @ Scaled.apply(w).T),
    "twice": lambda x, w: torch.tanh(x @ w.T) + Linear.apply(x, w * w),
    "func.grad": lambda x, w: F.linear(x, w - 0.1 * torch.func.grad(lambda v: F.linear(x, v).square().mean())(w)),
    "vmap": lambda x, w: torch.func.vmap(lambda row: torch.tanh(x) @ row)(w).T,
    "jacrev": lambda x, w: torch.func.vmap(torch.func.jacrev(lambda a: torch.tanh(w @ a).prod()))(x)[:, :3],
}


@pytest.mark.parametrize("name", ON_PARAMETERS)
def test_parameters_handed_to_what_no_record_shows(name):
    x, y, w = torch.randn(N, 4), torch.randn(N, 3), nn.Parameter(torch.randn(3, 4))

    def forward():
        z = ON_PARAMETERS[name](x, w)
        return F.mse_loss(z, y), z

    assert_right(ggn(forward, [w]), true_ggn([forward()[1]], lambda o: F.mse_loss(o[0], y), [w]))


def test_an_ensemble_of_stacked_models():
    models = [nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)) for _ in range(3)]
    params, buffers = torch.func.stack_module_state(models)
    x, y = torch.randn(N, 4), torch.randn(N, 2)
    leaves = [p.detach().requires_grad_() for p in params.values()]

    def forward():
        weights = dict(zip(params, leaves, strict=True))
        run = lambda p, b: torch.func.functional_call(models[0], (p, b), (x,))  # noqa: E731
        z = torch.func.vmap(run)(weights, buffers)
        return F.mse_loss(z, y.expand_as(z)), z

    truth = true_ggn([forward()[1]], lambda o: F.mse_loss(o[0], y.expand_as(o[0])), leaves)
    assert_right(ggn(forward, leaves), truth)


# ---------------------------------------------------------------------- what a program cannot show


class Hooked(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.scale = nn.Linear(5, 4), nn.Linear(4, 3), 1.0

    def hook(self, grad):
        return grad * self.scale

    def forward(self, x):
        h = torch.tanh(self.a(x))
        if h.requires_grad:
            h.register_hook(self.hook)
        return self.b(h)


class Configured(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.scale = nn.Linear(5, 4), nn.Linear(4, 3), 1.0

    def forward(self, x):
        Scaled.factor = self.scale
        return self.b(Scaled.apply(torch.tanh(self.a(x))))


class Switched(nn.Module):
    """Its lower part is sometimes no part of the graph."""

    def __init__(self, mode):
        super().__init__()
        self.a, self.b, self.mode, self.scale = nn.Linear(5, 4), nn.Linear(4, 3), mode, 1.0

    def forward(self, x):
        with self.mode() if self.scale != 1.0 else contextlib.nullcontext():
            h = torch.tanh(self.a(x))
        return self.b(h.clone())


KINDS = [
    Hooked,
    Configured,
    lambda: Switched(torch.inference_mode),
    lambda: Switched(torch.no_grad),
]


@pytest.mark.parametrize("build", KINDS, ids=["hook", "configuration", "inference mode", "no_grad"])
def test_what_changes_derivatives_without_changing_a_call(build):
    model, (x, y, _) = build(), data()
    params = trainable(model)

    def forward():
        z = model(x)
        return F.mse_loss(z, y), z

    for scale in (1.0, 0.1, 1.0, 3.0):
        model.scale = scale
        assert_right(ggn(forward, params), true_ggn([model(x)], lambda o: F.mse_loss(o[0], y), params))


def test_hooks_on_parameters_apply_to_products_on_both_sides():
    model, (_, _, t) = nn.Sequential(nn.Embedding(N, 5), nn.Tanh(), nn.Linear(5, 3)), data()
    mask = torch.zeros(N, 1)
    mask[4:] = 2.0
    model[0].weight.register_hook(lambda g: g * mask)

    def forward():
        z = model(torch.arange(N))
        return F.cross_entropy(z, t), z

    params = trainable(model)
    truth = true_ggn([forward()[1]], lambda o: F.cross_entropy(o[0], t), params)  # rows are masked by the hook
    assert (truth[: 4 * 5] == 0.0).all()
    assert_right(ggn(forward, params), truth)


def test_a_hook_that_is_not_linear_is_refused():
    model, (x, y, _) = nn.Linear(5, 3), data()
    model.weight.register_hook(lambda g: g.clamp(-1e-3, 1e-3))

    def forward():
        z = model(x)
        return F.mse_loss(z, y), z

    with pytest.raises(CurvatureError, match="a hook must be linear"):
        ggn(forward, model.parameters())


def test_a_tensor_computed_before_the_closure_is_called_is_refused():
    model, (x, y, _) = nn.Linear(5, 3), data()
    before = model.weight.square().sum()
    custom = Scaled.apply(model.weight)
    for made in (lambda z: F.mse_loss(z, y) + before, lambda z: F.mse_loss(z, y) + Scaled.apply(custom).sum()):

        def forward(made=made):
            z = model(x)
            return made(z), z

        for curvature in (ggn, hessian):
            with pytest.raises(RuntimeError, match="before the closure was called"):
                curvature(forward, model.parameters())


# ---------------------------------------------------------------------- numbers, complex numbers, containers


def test_directions_do_not_equal_weights_drawn_from_small_seeds():
    for seed in (0, 1, 2):
        torch.manual_seed(seed)
        w = nn.Parameter(torch.randn(4, 3))

        def forward(w=w):
            q = torch.linalg.qr(w)[0]  # the same for all multiples of w, so that J w is zero
            return (q**2).mean() + torch.sin(q).mean(), q

        assert ggn(forward, [w]).backend == "linearize"


@pytest.mark.parametrize("transform", [torch.fft.fft, torch.fft.rfft, lambda z: torch.polar(z.exp(), z)])
def test_complex_outputs_count_as_pairs_of_real_ones(transform):
    x, w = torch.randn(N, 4), nn.Parameter(torch.randn(4, 3))

    def complex_outputs():
        z = transform(torch.tanh(x @ w))
        return (z.abs() ** 2).mean() + (z.real * z.imag).sum(), z

    pair = torch.view_as_real(complex_outputs()[1])
    truth = true_ggn([pair], lambda o: o[0].square().sum() / (pair.numel() / 2) + o[0].prod(-1).sum(), [w])
    assert_right(ggn(complex_outputs, [w]), truth)


@dataclasses.dataclass
class Prediction:
    logits: torch.Tensor
    name: str = "x"


def test_outputs_may_be_a_dataclass():
    model, (x, _, t) = nn.Linear(5, 3), data()

    def forward():
        z = model(x)
        return F.cross_entropy(z, t), Prediction(z)

    assert_right(
        ggn(forward, model.parameters()), true_ggn([model(x)], lambda o: F.cross_entropy(o[0], t), trainable(model))
    )


def test_a_loss_without_curvature_says_so():
    model, (x, y, _) = nn.Linear(5, 3), data()

    def forward():
        z = model(x)
        return F.l1_loss(z, y), z

    with pytest.warns(CurvatureWarning, match="no second derivative"):
        operator = ggn(forward, model.parameters())
    assert "no second derivative" in operator.explain()
    assert not matrix(operator).any()


def test_a_regulariser_past_the_outputs_is_named():
    model, (x, _, t) = nn.Linear(5, 3), data()

    def forward():
        z = model(x)
        return F.cross_entropy(z, t) + 0.1 * model.weight.square().sum(), z

    with pytest.warns(CurvatureWarning, match="not in the GGN"):
        operator = ggn(forward, model.parameters())
    assert_right(operator, true_ggn([model(x)], lambda o: F.cross_entropy(o[0], t), trainable(model)))
    operator = ggn(forward, model.parameters())  # said once for a program
    assert "not in the GGN" in operator.explain()


class Labelled(torch.Tensor):
    """A class of tensors, as labels or units have it."""


def test_views_as_another_class_are_seen_through():
    """`as_subclass` is no torch function that a recording would see."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    x, y = torch.randn(N, 3), torch.randn(N, 2)

    def plain():
        return F.mse_loss(outputs := model(x), y), outputs

    def outputs_and_inputs():
        outputs = model(x.as_subclass(Labelled)).as_subclass(Labelled)
        return (outputs - y).square().mean(), outputs

    def there_and_back():
        hidden = model[0](x).as_subclass(Labelled).as_subclass(torch.Tensor)
        return F.mse_loss(outputs := model[2](model[1](hidden)), y), outputs

    def a_parameter():
        weight, bias = model[0].parameters()
        hidden = F.linear(x, weight.as_subclass(Labelled), bias)
        return F.mse_loss(outputs := model[2](model[1](hidden)), y), outputs

    def one_of_several_results():
        left, right = model(x).unbind(1)
        outputs = torch.stack([left.as_subclass(Labelled), right.as_subclass(Labelled)], dim=1)
        return F.mse_loss(outputs, y), outputs

    v = torch.randn(sum(p.numel() for p in model.parameters()))
    expected = ggn(plain, model.parameters()) @ v
    for closure in (outputs_and_inputs, there_and_back, a_parameter, one_of_several_results):
        C = ggn(closure, model.parameters())
        assert C.backend == "linearize", closure.__name__
        product = C @ v
        torch.testing.assert_close(product, expected, rtol=1e-12, atol=1e-14)
        assert type(product) is torch.Tensor


# ---------------------------------------------------------------------- lists, and tensors of classes of their own


@pytest.mark.parametrize("index", [[0, 2], [True, False, True], (slice(None), [2, 0]), ([0, 1], [2, 2])], ids=str)
def test_lists_of_numbers_index_as_fast_as_tensors(index):
    """Each time the function is called it makes tensors of them, which are no constants that grow stale."""
    model, x = nn.Sequential(nn.Linear(3, 3), nn.Tanh()), torch.randn(3, 3)
    params = trainable(model)
    for i in (index, [1, 1]):

        def forward(i=i):
            z = model(x)[i]
            return (z**2).mean(), z

        C = ggn(forward, params)
        assert C.backend == "linearize", C.explain()
        assert_right(C, true_ggn([forward()[1]], lambda z: (z[0] ** 2).mean(), params))


class WithLabel(torch.Tensor):
    """Refuses to change its type without its label, which none of its results has by itself."""

    def to(self, *args, **kwargs):
        label = self.__dict__["label"]
        moved = super().to(*args, **kwargs)
        moved.__dict__["label"] = label
        return moved


def labelled(tensor, label):
    found = tensor.as_subclass(WithLabel)
    found.__dict__["label"] = label
    return found


@pytest.mark.parametrize("operator", [ggn, hessian])
@pytest.mark.parametrize("smooth", [True, False])
def test_tensors_of_a_class_of_their_own(operator, smooth):
    """They are that to the closure, and numbers to all else; whatever the rung."""
    model, (x, y, _) = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)), data()
    params = trainable(model)
    seen = []

    def residuals(inputs):
        z = model(inputs) - y
        return z if smooth else Unseen.apply(z)

    def forward():
        inputs = labelled(x, "x")
        seen.append(inputs.to(torch.float64).__dict__["label"])
        z = residuals(inputs)
        assert isinstance(z, WithLabel)
        return (z**2).mean(), z

    C = operator(forward, params)
    z = residuals(x)
    truth = (
        true_ggn([z], lambda z: (z[0] ** 2).mean(), params) if operator is ggn else true_hessian((z**2).mean(), params)
    )
    assert_right(C, truth)
    assert type(C @ torch.ones(C._parameters.numel)) is torch.Tensor
    assert set(seen) == {"x"}


class Unseen(torch.autograd.Function):
    """Twice, by a function that only the graph knows."""

    @staticmethod
    def forward(ctx, z):
        return 2.0 * z

    @staticmethod
    def backward(ctx, grad):
        return 2.0 * grad
