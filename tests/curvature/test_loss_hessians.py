"""Every closed form against automatic differentiation of the loss, twice."""

import itertools

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from latephase.curvature import ggn
from latephase.curvature.inferred import ConvexCalls
from latephase.curvature.loss_hessians import LossCall, closed_form
from latephase.curvature.recording import Recording

REDUCTIONS = ["mean", "sum"]


def recorded(loss, outputs):
    """The call that a closure computing `loss(outputs)` makes, as the engine sees it."""
    outputs = outputs.detach().requires_grad_()
    with Recording([outputs], ConvexCalls()) as recording:
        loss(outputs)
    (call,) = recording.loss_calls
    return call


def check(loss, outputs):
    generator = torch.Generator().manual_seed(1)
    v = torch.randn(outputs.shape, generator=generator, dtype=outputs.dtype)
    product = closed_form(recorded(loss, outputs), outputs)
    assert product is not None
    expected = torch.autograd.functional.hvp(loss, outputs, v)[1]
    assert (product(v) - expected).norm() <= 1e-12 * expected.norm()


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


SHAPES = [(5,), (7, 5), (3, 5, 4), (2, 5, 3, 2)]


@pytest.mark.parametrize(
    ("shape", "reduction", "weighted", "smoothing", "ignored"),
    list(itertools.product(SHAPES, REDUCTIONS, [False, True], [0.0, 0.1], [False, True])),
)
def test_cross_entropy_of_classes(shape, reduction, weighted, smoothing, ignored):
    logits = torch.randn(shape, dtype=torch.float64)
    targets = torch.randint(5, shape[:1] + shape[2:] if len(shape) > 1 else ())
    if ignored and len(shape) > 1:
        targets[0] = -100
    weight = torch.rand(5, dtype=torch.float64) if weighted else None
    check(lambda z: F.cross_entropy(z, targets, weight=weight, reduction=reduction, label_smoothing=smoothing), logits)


def test_cross_entropy_with_another_ignored_index():
    logits, targets = torch.randn(6, 5, dtype=torch.float64), torch.tensor([0, 1, 2, 2, 3, 4])
    check(lambda z: F.cross_entropy(z, targets, ignore_index=2), logits)


@pytest.mark.parametrize(
    ("shape", "reduction", "weighted", "smoothing"),
    list(itertools.product(SHAPES, REDUCTIONS, [False, True], [0.0, 0.2])),
)
def test_cross_entropy_of_probabilities(shape, reduction, weighted, smoothing):
    dim = 0 if len(shape) == 1 else 1
    logits = torch.randn(shape, dtype=torch.float64)
    targets = torch.randn(shape, dtype=torch.float64).softmax(dim)
    weight = torch.rand(5, dtype=torch.float64) if weighted else None
    check(lambda z: F.cross_entropy(z, targets, weight=weight, reduction=reduction, label_smoothing=smoothing), logits)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_mse(reduction):
    outputs, targets = torch.randn(2, 4, 3, dtype=torch.float64)
    check(lambda z: F.mse_loss(z, targets, reduction=reduction), outputs)


@pytest.mark.parametrize(("reduction", "delta"), list(itertools.product(REDUCTIONS, [0.5, 1.0])))
def test_huber(reduction, delta):
    outputs, targets = torch.randn(2, 6, 4, dtype=torch.float64)
    far = (outputs - targets).abs() >= delta
    assert 0 < far.sum() < far.numel()
    check(lambda z: F.huber_loss(z, targets, reduction=reduction, delta=delta), outputs)


@pytest.mark.parametrize(
    ("reduction", "log_input", "full", "eps"),
    list(itertools.product(REDUCTIONS, [True, False], [False, True], [1e-8, 0.1])),
)
def test_poisson_nll(reduction, log_input, full, eps):
    outputs, targets = torch.rand(6, 4, dtype=torch.float64) + 0.1, torch.randint(4, (6, 4)).double()
    options = {"log_input": log_input, "full": full, "eps": eps, "reduction": reduction}
    check(lambda z: F.poisson_nll_loss(z, targets, **options), outputs)


@pytest.mark.parametrize(
    ("reduction", "weighted", "positive"),
    list(itertools.product(REDUCTIONS, [False, True], [False, True])),
)
def test_binary_cross_entropy_with_logits(reduction, weighted, positive):
    logits, targets = torch.randn(6, 4, dtype=torch.float64), torch.rand(6, 4, dtype=torch.float64)
    weight = torch.rand(6, 4, dtype=torch.float64) if weighted else None
    pos_weight = 3.0 * torch.rand(4, dtype=torch.float64) if positive else None
    check(
        lambda z: F.binary_cross_entropy_with_logits(
            z, targets, weight=weight, pos_weight=pos_weight, reduction=reduction
        ),
        logits,
    )


@pytest.mark.parametrize(
    "loss",
    [
        lambda z: F.cross_entropy(z, torch.tensor([0, 1, 2]), reduction="none"),
        lambda z: F.huber_loss(z, torch.zeros_like(z), weight=torch.ones_like(z)),  # type: ignore[call-arg]
        lambda z: F.huber_loss(z, torch.zeros(1, 4, dtype=z.dtype)),
        lambda z: F.poisson_nll_loss(z, torch.zeros(1, 4, dtype=z.dtype)),
        lambda z: F.mse_loss(z, torch.zeros(1, 4, dtype=z.dtype).expand(3, 4)[:, :1].expand(3, 4)[:1]),
    ],
)
@pytest.mark.filterwarnings("ignore:Using a target size")
def test_no_closed_form_is_guessed(loss):
    outputs = torch.randn(3, 4, dtype=torch.float64)
    assert closed_form(recorded(loss, outputs), outputs) is None


def test_no_call_no_closed_form():
    assert closed_form(None, torch.randn(3)) is None


def test_half_precision_keeps_its_type():
    outputs, targets = torch.randn(3, 4).bfloat16(), torch.tensor([0, 1, 2])
    call = LossCall(F.cross_entropy, (outputs, targets), {}, torch.tensor(0.0))
    assert closed_form(call, outputs)(outputs).dtype is torch.bfloat16


@pytest.mark.parametrize(
    ("loss", "how"),
    [
        (lambda z, y: F.cross_entropy(z, y), "closed form"),
        (lambda z, y: torch.nn.CrossEntropyLoss(label_smoothing=0.1)(z, y), "closed form"),
        (lambda z, y: 2.0 * F.cross_entropy(z, y), "automatic differentiation"),
        (lambda z, y: F.cross_entropy(2.0 * z, y), "automatic differentiation"),
        (lambda z, y: F.cross_entropy(z, y) + F.mse_loss(z, z.detach()), "automatic differentiation"),
        (lambda z, y: F.mse_loss(z, z.flip(0)), "automatic differentiation"),
        (lambda z, y: F.mse_loss(z, target=z.flip(0)), "automatic differentiation"),
        (lambda z, y: F.nll_loss(F.log_softmax(z, 1), y), "automatic differentiation"),
        (lambda z, y: F.huber_loss(z, F.one_hot(y, 3).to(z)), "closed form"),
        (lambda z, y: F.poisson_nll_loss(z, y.unsqueeze(1).expand(5, 3).to(z)), "closed form"),
        (lambda z, y: F.smooth_l1_loss(z, F.one_hot(y, 3).to(z)), "automatic differentiation"),
    ],
)
def test_a_closed_form_is_used_only_where_it_is_the_whole_loss(loss, how):
    model, x, y = torch.nn.Linear(4, 3).double(), torch.randn(5, 4, dtype=torch.float64), torch.randint(3, (5,))

    def forward():
        z = model(x)
        return loss(z, y), z

    operator = ggn(forward, model.parameters())
    assert how in operator.explain()

    params = dict(model.named_parameters())
    theta = torch.cat([p.detach().reshape(-1) for p in params.values()])

    def total(vector):
        weight, bias = vector[:12].view(3, 4), vector[12:]
        return loss(x @ weight.T + bias, y)

    # The network is linear in θ, so the GGN is the Hessian.
    assert torch.allclose(operator @ torch.eye(15).double(), torch.func.hessian(total)(theta), rtol=0, atol=1e-12)
