"""Outputs told from the loss alone: the matrix is the one that the outputs give, or the loss is refused by name."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from tests.curvature.test_closures import assert_right, flat, matrix, rows, true_ggn
from torch import nn

from latephase.curvature import ggn, hessian

N, C = 6, 3


pytestmark = pytest.mark.usefixtures("float64")


class Setting:
    """A network, its data, and the ways in which people write a closure around a loss."""

    def __init__(self):
        self.model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, C))
        self.params = list(self.model.parameters())
        self.x, self.labels = torch.randn(N, 5), torch.randint(C, (N,))
        self.targets = torch.randn(N, C)
        self.signs = (self.targets > 0.0).double()
        self.mask = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 1.0])

    def zero_grad(self):
        for p in self.params:
            p.grad = None

    def closure(self, loss):
        """The ordinary one, as for any of torch's optimizers."""

        def closure():
            self.zero_grad()
            value = loss(self, self.model(self.x))
            value.backward()
            return value

        return closure


LOSSES = {
    "cross_entropy": lambda s, z: F.cross_entropy(z, s.labels),
    "smoothed": lambda s, z: F.cross_entropy(z, s.labels, label_smoothing=0.1, reduction="sum"),
    "module": lambda s, z: nn.CrossEntropyLoss()(z, s.labels),
    "mse": lambda s, z: F.mse_loss(z, s.targets),
    "square": lambda s, z: torch.square(z - s.targets).mean(),
    "method square": lambda s, z: (z - s.targets).square().sum(1).mean(),
    "operator": lambda s, z: ((z - s.targets) ** 2).mean(),
    "pow": lambda s, z: torch.pow(s.targets - z, 2).sum() / N,
    "nll": lambda s, z: F.nll_loss(F.log_softmax(z, dim=1), s.labels),
    "nll of a method": lambda s, z: nn.NLLLoss()(z.log_softmax(dim=-1), s.labels),
    "kl": lambda s, z: F.kl_div(F.log_softmax(z, 1), torch.softmax(s.targets, 1), reduction="batchmean"),
    "bce with logits": lambda s, z: F.binary_cross_entropy_with_logits(z, s.signs),
    "bce": lambda s, z: F.binary_cross_entropy(torch.sigmoid(z), s.signs),
    "huber": lambda s, z: F.huber_loss(z, s.targets, delta=0.5),
    "smooth l1": lambda s, z: F.smooth_l1_loss(z, s.targets),
    "poisson": lambda s, z: F.poisson_nll_loss(z, s.signs),
    "gaussian": lambda s, z: F.gaussian_nll_loss(z, s.targets, torch.full((N, C), 0.5)),
    "soft margin": lambda s, z: F.soft_margin_loss(z, 2.0 * s.signs - 1.0),
    "log_softmax by hand": lambda s, z: -z.log_softmax(1)[range(N), s.labels].mean(),
    "soft targets": lambda s, z: (-torch.softmax(s.targets, 1) * F.log_softmax(z, 1)).sum(1).mean(),
    "logsigmoid": lambda s, z: -F.logsigmoid(s.signs * z).mean(),
    "softplus": lambda s, z: F.softplus(-s.signs * z).mean(),
    "logsumexp": lambda s, z: torch.logsumexp(z, 1).mean() + z.square().mean(),
    "nll of some": lambda s, z: F.nll_loss(F.log_softmax(z, 1)[s.mask > 0], s.labels[s.mask > 0]),
    "scaled": lambda s, z: F.mse_loss(z, s.targets) / 4,
    "half": lambda s, z: 0.5 * F.mse_loss(z, s.targets, reduction="sum"),
    "masked": lambda s, z: (F.cross_entropy(z, s.labels, reduction="none") * s.mask).sum() / s.mask.sum(),
    "where": lambda s, z: torch.where(s.mask > 0, F.mse_loss(z, s.targets, reduction="none").mean(1), 0.0).sum(),
    "some": lambda s, z: F.mse_loss(z, s.targets, reduction="none")[s.mask > 0].mean(),
    "two terms": lambda s, z: F.cross_entropy(z, s.labels) + 0.3 * F.mse_loss(z, s.targets),
    "a sum of a list": lambda s, z: sum(F.mse_loss(z[:, i], s.targets[:, i]) for i in range(C)),
    "stacked": lambda s, z: torch.stack([F.mse_loss(z[i], s.targets[i]) for i in range(N)]).mean(),
}


def truth(setting, loss):
    return true_ggn([setting.model(setting.x)], lambda z: loss(setting, z[0]), setting.params)


@pytest.mark.parametrize("name", LOSSES)
def test_the_matrix_is_that_of_the_outputs(name):
    setting = Setting()
    assert_right(ggn(setting.closure(LOSSES[name]), setting.params), truth(setting, LOSSES[name]))


# Others have residuals or parts as outputs, which nobody returns beside the loss.
OF_ONE_OUTPUT = [
    n for n in LOSSES if n not in ("square", "method square", "operator", "pow", "a sum of a list", "stacked")
]


@pytest.mark.parametrize("name", OF_ONE_OUTPUT)
def test_products_are_those_of_the_explicit_closure_to_the_bit(name):
    setting = Setting()

    def explicit():
        z = setting.model(setting.x)
        return LOSSES[name](setting, z), z

    alone = ggn(setting.closure(LOSSES[name]), setting.params)
    assert torch.equal(matrix(alone), matrix(ggn(explicit, setting.params)))


def test_pictures():
    setting = Setting()

    def loss(s, z):
        return F.nll_loss(F.log_softmax(z.T.reshape(1, C, 2, 3), 1)[..., :2], s.labels.view(1, 2, 3)[..., :2])

    assert_right(ggn(setting.closure(loss), setting.params), truth(setting, loss))


def test_it_is_said_what_was_taken():
    setting = Setting()
    explained = ggn(setting.closure(LOSSES["two terms"]), setting.params).explain()
    assert "as outputs counts what cross_entropy, mse_loss were taken of, of shape (6, 3)" in explained
    explained = ggn(lambda: (setting.model(setting.x).square().sum(), None)[0], setting.params).explain()
    assert "as outputs counts what square was taken of, of shape (6, 3)" in explained


def test_a_penalty_of_the_parameters_is_part_of_it():
    setting = Setting()

    def loss(s, z):
        return F.mse_loss(z, s.targets) + 0.05 * sum(p.square().sum() for p in s.params)

    expected = truth(setting, LOSSES["mse"]) + 0.1 * torch.eye(sum(p.numel() for p in setting.params))
    assert_right(ggn(setting.closure(loss), setting.params), expected)


def test_a_physics_informed_loss():
    """Residuals that contain derivatives of the network by its inputs."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(1, 6), nn.Tanh(), nn.Linear(6, 1))
    x = torch.linspace(0.0, 1.0, 7)[:, None].requires_grad_()

    def residuals():
        u = model(x)
        (du,) = torch.autograd.grad(u.sum(), x, create_graph=True)
        return du + u, model(torch.zeros(1, 1)) - 1.0

    def closure():
        inside, boundary = residuals()
        loss = (inside**2).mean() + 10.0 * (boundary**2).mean()
        loss.backward()
        return loss

    params = list(model.parameters())
    inside, boundary = residuals()
    expected = true_ggn([inside, boundary], lambda r: r[0].square().mean() + 10.0 * r[1].square().mean(), params)
    assert_right(ggn(closure, params), expected)


def test_outputs_of_which_one_is_made_of_another():
    """Deep supervision: both enter the loss, and count as independent."""
    setting = Setting()
    head = nn.Linear(C, C)
    params = [*setting.params, *head.parameters()]

    def outputs():
        z = setting.model(setting.x)
        return z, head(z)

    def closure():
        z, refined = outputs()
        return F.cross_entropy(refined, setting.labels) + 0.4 * F.cross_entropy(z, setting.labels)

    def loss(z):
        return F.cross_entropy(z[1], setting.labels) + 0.4 * F.cross_entropy(z[0], setting.labels)

    assert_right(ggn(closure, params), true_ggn(list(outputs()), loss, params))


REFUSED = {
    "a root": (lambda s, z: F.mse_loss(z, s.targets).sqrt(), "Sqrt is neither linear nor a known loss"),
    "absolute values": (lambda s, z: F.l1_loss(z, s.targets), "neither linear nor a known loss"),
    "a log-likelihood by hand": (
        lambda s, z: -torch.log(torch.softmax(z, 1)[range(N), s.labels]).mean(),
        "Log is neither linear nor a known loss",
    ),
    "a penalty that is not convex": (
        lambda s, z: F.mse_loss(z, s.targets) - 0.1 * z.square().mean(),
        "enters with a negative weight",
    ),
    "a penalty of absolute values": (
        lambda s, z: F.mse_loss(z, s.targets) + 0.1 * sum(p.abs().sum() for p in s.params),
        "Abs is neither linear nor a known loss",
    ),
    "a parameter as it is": (lambda s, z: F.mse_loss(z, s.targets) + s.params[0].sum(), "without a square"),
    "nll of something else": (lambda s, z: F.nll_loss(z, s.labels), "Addmm is neither linear nor a known loss"),
    "bce of something else": (
        lambda s, z: F.binary_cross_entropy(torch.softmax(z, 1), s.signs),
        "binary_cross_entropy is not taken of the result of sigmoid",
    ),
    "a log-likelihood to be made small": (
        lambda s, z: F.log_softmax(z, 1).mean(),
        "a concave one with a positive",
    ),
    "a concave one by itself": (lambda s, z: F.logsigmoid(z[0, 0]), "a concave one with a positive"),
    "targets of the network": (lambda s, z: F.mse_loss(z, z.roll(1, 0)), "targets or weights that depend on param"),
    "a product of losses": (
        lambda s, z: F.mse_loss(z, s.targets) * F.cross_entropy(z, s.labels),
        "Mul of two tensors that depend on parameters is not convex",
    ),
    "a weight of the network": (
        lambda s, z: F.mse_loss(z, s.targets) / (1.0 + F.mse_loss(z, s.targets)),
        "Div of two tensors that depend on parameters is not convex",
    ),
    "a variance of the network": (
        lambda s, z: F.gaussian_nll_loss(z, s.targets, z.exp()),
        "targets or weights that depend on parameters",
    ),
    "the network itself": (lambda s, z: z.mean(), "Addmm is neither linear nor a known loss"),
    "a cube": (lambda s, z: (z**3).mean(), "Pow is neither linear nor a known loss"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_convex_in_something_known_is_refused_with_the_way_out(name):
    loss, reason = REFUSED[name]
    setting = Setting()
    with pytest.raises(ValueError, match="they cannot be told from the loss") as refusal:
        ggn(setting.closure(loss), setting.params)
    assert reason in str(refusal.value)
    assert "Return (loss, outputs) from the closure" in str(refusal.value)


def test_the_hessian_needs_no_outputs():
    setting = Setting()
    loss, _ = REFUSED["a log-likelihood by hand"]
    value = loss(setting, setting.model(setting.x))
    grads = flat(torch.autograd.grad(value, setting.params, create_graph=True), setting.params)
    assert_right(hessian(setting.closure(loss), setting.params), rows(grads, setting.params).detach())
