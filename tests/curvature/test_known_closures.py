"""Closures in the style of the examples of known libraries: told right, or refused by name; none wrong.

Each is a function that builds a model and returns its parameters, `predict`, which returns the tensors that the example
calls its predictions, and `loss_of`, which takes them. The closure is the ordinary one around both.
"""

import copy
import itertools
import math

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from tests.curvature.test_closures import assert_right, true_ggn
from torch import nn

from latephase.curvature import ggn

pytestmark = pytest.mark.usefixtures("float64")


def mlp(*sizes):
    layers = [layer for n, m in itertools.pairwise(sizes) for layer in (nn.Linear(n, m), nn.Tanh())]
    return nn.Sequential(*layers[:-1])


def params_of(*models):
    return [p for model in models for p in model.parameters()]


def with_slope(model, x):
    u = model(x)
    return u, torch.autograd.grad(u.sum(), x, create_graph=True)[0]


# ---------------------------------------------------------------------- PyTorch's examples and tutorials


def mnist():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(18, 3))
    x, y = torch.randn(4, 1, 5, 5), torch.randint(3, (4,))
    return params_of(net), lambda: [net(x)], lambda z: F.nll_loss(F.log_softmax(z[0], dim=1), y)


def time_sequence_prediction():
    first, second, head = nn.LSTMCell(1, 2), nn.LSTMCell(2, 2), nn.Linear(2, 1)
    series = torch.sin(torch.arange(6.0)).repeat(3, 1)

    def predict():
        h, c, outputs = first(series[:, :1]), second(torch.zeros(3, 2)), []
        for t in range(5):
            h = first(series[:, t : t + 1], h)
            c = second(h[0], c)
            outputs.append(head(c[0]))
        return [torch.cat(outputs, dim=1)]

    return params_of(first, second, head), predict, lambda z: nn.MSELoss()(z[0], series[:, 1:])


def word_language_model():
    embed, rnn, decoder = nn.Embedding(7, 3), nn.GRU(3, 3), nn.Linear(3, 7)
    data, targets = torch.randint(7, (4, 2)), torch.randint(7, (8,))

    def predict():
        return [decoder(rnn(embed(data))[0]).view(-1, 7)]

    return params_of(embed, rnn, decoder), predict, lambda z: nn.NLLLoss()(F.log_softmax(z[0], dim=1), targets)


def super_resolution():
    net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Tanh(), nn.PixelShuffle(2))
    x, y = torch.rand(2, 1, 3, 3), torch.rand(2, 1, 6, 6)
    return params_of(net), lambda: [net(x)], lambda z: nn.MSELoss()(z[0], y)


def siamese():
    net, x = nn.Sequential(mlp(4, 3, 1), nn.Flatten(0)), torch.randn(5, 4)
    y = torch.randint(2, (5,)).double()
    return params_of(net), lambda: [net(x)], lambda z: nn.BCELoss()(torch.sigmoid(z[0]), y)


def variational_autoencoder():
    encoder, mu_of, logvar_of, decoder = mlp(6, 4), nn.Linear(4, 2), nn.Linear(4, 2), mlp(2, 4, 6)
    x, noise = torch.rand(3, 6), torch.randn(3, 2)

    def predict():
        h = torch.tanh(encoder(x))
        mu, logvar = mu_of(h), logvar_of(h)
        return [decoder(mu + torch.exp(0.5 * logvar) * noise), mu, logvar]

    def loss(z):
        bce = F.binary_cross_entropy(torch.sigmoid(z[0]), x, reduction="sum")
        return bce - 0.5 * torch.sum(1 + z[2] - z[1].pow(2) - z[2].exp())

    return params_of(encoder, mu_of, logvar_of, decoder), predict, loss


def neural_style():
    image, net = nn.Parameter(torch.rand(1, 3, 4, 4)), nn.Conv2d(3, 2, 3).requires_grad_(False)
    content, style = torch.rand(1, 2, 2, 2), torch.rand(2, 2)

    def predict():
        features = torch.relu(net(image))
        flat = features.view(2, 4)
        return [flat @ flat.t() / 8.0, features]

    return [image], predict, lambda z: 1e3 * F.mse_loss(z[0], style) + F.mse_loss(z[1], content)


def reinforce():
    policy, states, actions = mlp(4, 3, 2), torch.randn(5, 4), torch.randint(2, (5,))
    returns = torch.randn(5)
    returns = (returns - returns.mean()) / returns.std()

    def loss(z):
        return (-torch.distributions.Categorical(logits=z[0]).log_prob(actions) * returns).sum()

    return params_of(policy), lambda: [policy(states)], loss


def deep_q_learning():
    policy, states, actions = mlp(4, 3, 2), torch.randn(5, 4), torch.randint(2, (5, 1))
    target = copy.deepcopy(policy).requires_grad_(False)
    wanted = (0.9 * target(torch.randn(5, 4)).max(1).values + torch.rand(5)).unsqueeze(1)
    return params_of(policy), lambda: [policy(states)], lambda z: nn.SmoothL1Loss()(z[0].gather(1, actions), wanted)


def deep_q_learning_of_chosen_values():
    params, predict, _ = deep_q_learning()
    actions, wanted = torch.randint(2, (5, 1)), torch.randn(5, 1)
    return params, lambda: [predict()[0].gather(1, actions)], lambda z: nn.SmoothL1Loss()(z[0], wanted)


def knowledge_distillation():
    student, x, labels = mlp(4, 3, 3), torch.randn(5, 4), torch.randint(3, (5,))
    soft = torch.softmax(torch.randn(5, 3) / 2.0, dim=-1)

    def loss(z):
        soft_prob = F.log_softmax(z[0] / 2.0, dim=-1)
        return 0.25 * torch.sum(soft * (soft.log() - soft_prob)) / 5 * 4.0 + 0.75 * F.cross_entropy(z[0], labels)

    return params_of(student), lambda: [student(x)], loss


def translation_with_padding():
    net, tokens = nn.Sequential(nn.Embedding(6, 3), nn.Linear(3, 6)), torch.randint(1, 6, (2, 4))
    targets = torch.tensor([[1, 2, 0, 0], [3, 4, 5, 0]])

    def loss(z):
        return nn.CrossEntropyLoss(ignore_index=0)(z[0].reshape(-1, 6), targets.reshape(-1))

    return params_of(net), lambda: [net(tokens)], loss


# ---------------------------------------------------------------------- equations: DeepXDE, PINA, neuromancer, torchdyn


def burgers_residual():
    net, nu = mlp(2, 5, 1), 0.01 / math.pi
    x, boundary, values = torch.rand(6, 2, requires_grad=True), torch.rand(4, 2), torch.randn(4, 1)

    def predict():
        u, slope = with_slope(net, x)
        u_xx = torch.autograd.grad(slope[:, 0].sum(), x, create_graph=True)[0][:, :1]
        return [slope[:, 1:] + u * slope[:, :1] - nu * u_xx, net(boundary)]

    return params_of(net), predict, lambda z: torch.mean(z[0] ** 2) + 10.0 * torch.mean((z[1] - values) ** 2)


def inverse_problem():
    net, diffusivity = mlp(2, 4, 1), nn.Parameter(torch.tensor(2.0))
    x, seen, values = torch.rand(6, 2, requires_grad=True), torch.rand(4, 2), torch.randn(4, 1)

    def predict():
        _, slope = with_slope(net, x)
        u_xx = torch.autograd.grad(slope[:, 0].sum(), x, create_graph=True)[0][:, :1]
        return [slope[:, 1:] - diffusivity * u_xx, net(seen)]

    def loss(z):
        return F.mse_loss(z[0], torch.zeros_like(z[0])) + F.mse_loss(z[1], values)

    return [*net.parameters(), diffusivity], predict, loss


def deep_ritz():
    net, x = mlp(2, 4, 1), torch.rand(6, 2, requires_grad=True)

    def predict():
        u, slope = with_slope(net, x)
        return [slope, u]

    return params_of(net), predict, lambda z: torch.mean(0.5 * z[0].pow(2).sum(1, keepdim=True) - z[1])


def deeponet():
    branch, trunk = mlp(3, 4, 2), mlp(1, 4, 2)
    functions, places, values = torch.randn(4, 3), torch.rand(5, 1), torch.randn(4, 5)
    return (
        params_of(branch, trunk),
        lambda: [torch.einsum("bi,ni->bn", branch(functions), trunk(places))],
        lambda z: F.mse_loss(z[0], values),
    )


def fourier_operator_relative_error():
    net, x, y = mlp(4, 3, 4), torch.randn(5, 4), torch.randn(5, 4)
    return params_of(net), lambda: [net(x)], lambda z: (torch.norm(z[0] - y, 2, 1) / torch.norm(y, 2, 1)).mean()


def neural_ode():
    field, x, y = mlp(2, 4, 2), torch.randn(5, 2), torch.randn(5, 2)

    def predict():
        state = x
        for _ in range(4):
            middle = state + 0.125 * field(state)
            state = state + 0.25 * field(middle)
        return [state]

    return params_of(field), predict, lambda z: F.mse_loss(z[0], y)


def optimal_control():
    policy, start, A = mlp(2, 3, 1), torch.randn(4, 2), torch.tensor([[1.0, 0.1], [0.0, 1.0]])

    def predict():
        states, inputs = [start], []
        for _ in range(3):
            inputs.append(policy(states[-1]))
            states.append(states[-1] @ A.T + inputs[-1] * torch.tensor([0.0, 0.1]))
        return [torch.stack(states[1:]), torch.stack(inputs)]

    return params_of(policy), predict, lambda z: 5.0 * torch.mean(z[0] ** 2) + 0.1 * torch.mean(z[1] ** 2)


# ---------------------------------------------------------------------- potentials: SchNetPack, MACE, NequIP


def energies_and_forces():
    net, positions = mlp(3, 5, 1), torch.randn(4, 3, requires_grad=True)
    energy, forces = torch.randn(2), torch.randn(4, 3)

    def predict():
        e = net(positions).view(2, 2).sum(1)
        return [e, -torch.autograd.grad(e.sum(), positions, create_graph=True)[0]]

    def loss(z):
        return 0.01 * nn.MSELoss()(z[0], energy) + 0.99 * nn.MSELoss()(z[1], forces)

    return params_of(net), predict, loss


def per_atom_weights():
    params, predict, _ = energies_and_forces()
    energy, forces, atoms = torch.randn(2), torch.randn(4, 3), torch.tensor([2.0, 2.0])

    def loss(z):
        return torch.mean(torch.square((energy - z[0]) / atoms)) + 100.0 * torch.mean(torch.square(forces - z[1]))

    return params, predict, loss


def absolute_errors():
    params, predict, _ = energies_and_forces()
    energy = torch.randn(2)
    return params, predict, lambda z: F.l1_loss(z[0], energy) + z[1].square().mean()


# ---------------------------------------------------------------------- graphs: PyTorch Geometric, DGL


def graph_convolution():
    first, second, x = nn.Linear(4, 3, bias=False), nn.Linear(3, 2, bias=False), torch.randn(5, 4)
    adjacency = torch.eye(5) + torch.roll(torch.eye(5), 1, 0)
    y, train = torch.randint(2, (5,)), torch.tensor([True, False, True, True, False])

    def loss(z):
        return F.nll_loss(F.log_softmax(z[0], dim=1)[train], y[train])

    return params_of(first, second), lambda: [adjacency @ second(torch.relu(adjacency @ first(x)))], loss


def graph_convolution_on_training_nodes():
    params, predict, _ = graph_convolution()
    y, train = torch.randint(2, (5,)), torch.tensor([True, False, True, True, False])
    return params, lambda: [predict()[0][train]], lambda z: F.cross_entropy(z[0], y[train])


def link_prediction():
    encoder, x = mlp(4, 3, 2), torch.randn(6, 4)
    edges, labels = torch.randint(6, (2, 8)), torch.randint(2, (8,)).double()

    def predict():
        z = encoder(x)
        return [(z[edges[0]] * z[edges[1]]).sum(dim=-1)]

    return params_of(encoder), predict, lambda z: F.binary_cross_entropy_with_logits(z[0], labels)


def bayesian_personalised_ranking():
    users, items = nn.Embedding(4, 3), nn.Embedding(5, 3)
    u, i, j = torch.randint(4, (6,)), torch.randint(5, (6,)), torch.randint(5, (6,))

    def predict():
        return [(users(u) * items(i)).sum(1) - (users(u) * items(j)).sum(1)]

    return params_of(users, items), predict, lambda z: -F.logsigmoid(z[0]).mean()


# ---------------------------------------------------------------------- vision, language: timm, transformers, TRL, CLIP


def soft_targets():
    net, x, targets = mlp(4, 3, 3), torch.randn(5, 4), torch.softmax(torch.randn(5, 3), 1)
    return params_of(net), lambda: [net(x)], lambda z: torch.sum(-targets * F.log_softmax(z[0], dim=-1), dim=-1).mean()


def focal():
    net, x, y = mlp(4, 3, 3), torch.randn(5, 4), torch.randint(3, (5,))

    def loss(z):
        ce = F.cross_entropy(z[0], y, reduction="none")
        return ((1 - torch.exp(-ce)) ** 2 * ce).mean()

    return params_of(net), lambda: [net(x)], loss


def dice():
    net, x, y = mlp(4, 3, 3), torch.randn(5, 4), torch.randint(2, (5, 3)).double()

    def loss(z):
        p = torch.sigmoid(z[0])
        return 1 - (2.0 * (p * y).sum() + 1.0) / (p.sum() + y.sum() + 1.0)

    return params_of(net), lambda: [net(x)], loss


def causal_language_model():
    embed, head, tokens = nn.Embedding(7, 3), nn.Linear(3, 7), torch.randint(7, (2, 5))

    def loss(z):
        shifted = z[0][..., :-1, :].contiguous()
        return F.cross_entropy(shifted.view(-1, 7), tokens[..., 1:].contiguous().view(-1))

    return params_of(embed, head), lambda: [head(torch.tanh(embed(tokens)))], loss


def direct_preference():
    policy, tokens = nn.Sequential(nn.Embedding(6, 3), nn.Linear(3, 6)), torch.randint(6, (2, 4, 1))
    reference = torch.randn(2)

    def predict():
        log_probs = F.log_softmax(policy(tokens[..., 0]), dim=-1).gather(-1, tokens).sum((1, 2))
        return [0.1 * (log_probs - reference)]

    return params_of(policy), predict, lambda z: -F.logsigmoid(z[0]).mean()


def contrastive():
    images, texts = mlp(4, 3, 2), mlp(5, 3, 2)
    x, y, scale = torch.randn(3, 4), torch.randn(3, 5), nn.Parameter(torch.tensor(0.5))

    def predict():
        logits = scale.exp() * F.normalize(images(x), dim=-1) @ F.normalize(texts(y), dim=-1).t()
        return [logits]

    def loss(z):
        labels = torch.arange(3)
        return (F.cross_entropy(z[0], labels) + F.cross_entropy(z[0].t(), labels)) / 2

    return [*params_of(images, texts), scale], predict, loss


def triplets():
    net, x = mlp(4, 3, 2), torch.randn(3, 5, 4)
    return params_of(net), lambda: [net(x)], lambda z: nn.TripletMarginLoss()(*z[0])


def speech():
    net, x, targets = mlp(4, 3, 4), torch.randn(6, 2, 4), torch.randint(1, 4, (2, 2))

    def loss(z):
        return F.ctc_loss(F.log_softmax(z[0], -1), targets, torch.full((2,), 6), torch.full((2,), 2))

    return params_of(net), lambda: [net(x)], loss


def diffusion():
    net, x, noise, level = mlp(5, 4, 4), torch.randn(3, 4), torch.randn(3, 4), torch.rand(3, 1)
    noisy = (1.0 - level).sqrt() * x + level.sqrt() * noise
    return params_of(net), lambda: [net(torch.cat([noisy, level], 1))], lambda z: F.mse_loss(z[0], noise)


# ---------------------------------------------------------------------- statistics: GPyTorch, skorch, a ridge by hand


def marginal_likelihood():
    log_scale, log_noise, x = nn.Parameter(torch.tensor(0.1)), nn.Parameter(torch.tensor(-1.0)), torch.randn(5, 1)
    y = torch.randn(5)

    def predict():
        return [torch.exp(-((x - x.t()) ** 2) / log_scale.exp()) + log_noise.exp() * torch.eye(5)]

    def loss(z):
        return -torch.distributions.MultivariateNormal(torch.zeros(5), z[0]).log_prob(y)

    return [log_scale, log_noise], predict, loss


def log_likelihood_of_a_normal_distribution():
    net, x, y = mlp(3, 4, 1), torch.randn(5, 3), torch.randn(5, 1)
    return params_of(net), lambda: [net(x)], lambda z: -torch.distributions.Normal(z[0], 0.3).log_prob(y).mean()


def ridge():
    net, x, y = nn.Linear(3, 1), torch.randn(5, 3), torch.randn(5, 1)

    def loss(z):
        return F.mse_loss(z[0], y) + 0.1 * z[1].pow(2).sum()

    return params_of(net), lambda: [net(x), net.weight], loss


TOLD = [
    mnist, time_sequence_prediction, word_language_model, super_resolution, siamese, neural_style,
    deep_q_learning_of_chosen_values, knowledge_distillation, translation_with_padding, burgers_residual,
    inverse_problem, deeponet, neural_ode, optimal_control, energies_and_forces, per_atom_weights, graph_convolution,
    graph_convolution_on_training_nodes, link_prediction, bayesian_personalised_ranking, soft_targets,
    causal_language_model, direct_preference, contrastive, diffusion, deep_q_learning,
    log_likelihood_of_a_normal_distribution, ridge,
]  # fmt: skip
REFUSED = {
    variational_autoencoder: "Exp is neither linear",
    reinforce: "Addmm is neither linear",
    deep_ritz: "Addmm is neither linear",
    fourier_operator_relative_error: "LinalgVectorNorm is neither linear",
    absolute_errors: "Abs is neither linear",
    focal: "Mul of two tensors that depend on parameters",
    dice: "Div of two tensors that depend on parameters",
    triplets: "ClampMin is neither linear",
    speech: "CtcLoss is neither linear",
    marginal_likelihood: "Log is neither linear",
}


def ordinary(params, predict, loss_of):
    def closure():
        for p in params:
            p.grad = None
        loss = loss_of(predict())
        loss.backward()
        return loss

    return closure


@pytest.mark.parametrize("known", TOLD)
def test_the_outputs_are_told(known):
    params, predict, loss_of = known()
    assert_right(ggn(ordinary(params, predict, loss_of), params), true_ggn(predict(), loss_of, params))


@pytest.mark.parametrize("known", REFUSED)
def test_the_loss_is_refused(known):
    params, predict, loss_of = known()
    with pytest.raises(ValueError, match="cannot be told from the loss") as refusal:
        ggn(ordinary(params, predict, loss_of), params)
    assert REFUSED[known] in str(refusal.value)


@pytest.mark.parametrize("known", [known for known in REFUSED if known is not speech], ids=lambda known: known.__name__)
def test_the_way_out_works(known):
    """All but the speech model's: PyTorch has no second derivative of its loss."""
    params, predict, loss_of = known()

    def explicit():
        outputs = predict()
        return loss_of(outputs), outputs

    assert_right(ggn(explicit, params), true_ggn(predict(), loss_of, params))
