"""Rows of the Jacobian and roots of the loss's Hessian, beside dense matrices; what has none says so."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from tests.contract import dense, flat
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.utils._pytree import tree_leaves

from latephase.curvature import GGN, ggn, jacobian
from latephase.curvature.factor import Roots, roots
from latephase.curvature.jacobian import NotBySampleError
from latephase.curvature.rewrite import outer_products
from latephase.outer_rows import Outer, OuterRows, whole

GGN_MODULE = sys.modules["latephase.curvature.ggn"]  # the package's function of that name hides it
N = 7
Forward = Callable[[], tuple[Tensor, object]]


def data(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mlp(*widths: int) -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for a, b in pairwise(widths):
        layers += [nn.Linear(a, b), nn.Tanh()]
    return nn.Sequential(*layers[:-1]).double()


class Merged(nn.Module):
    """Reshapes by the length of the batch, as code for sequences does."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = mlp(3, 4), mlp(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, 6) to (N, 2)."""
        return self.outer(torch.sin(self.inner(x.reshape(len(x), 2, 3))).view(N, 8))


def convolutional() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Dropout(0.0), nn.Linear(12, 3)
    ).double()


def frozen_norm() -> nn.Module:
    model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 3)).double()
    return model.eval()


def closures() -> dict[str, tuple[nn.Module, Callable[[nn.Module], tuple[Tensor, object]]]]:
    """Models and what a closure computes with them."""
    x, image, sequence = data(N, 6), data(N, 1, 6, 6), data(N, 5, 3)
    labels, targets = torch.arange(N) % 3, data(N, 2, seed=1)

    def loss(function: Callable[..., Tensor], inputs: Tensor, y: Tensor, **options: str) -> Callable:
        def forward(model: nn.Module) -> tuple[Tensor, object]:
            z = model(inputs)
            return function(z, y, **options), z

        return forward

    def two_outputs(model: nn.Module) -> tuple[Tensor, object]:
        h = model[0](x)
        z = model[1](h.tanh())
        return F.mse_loss(z, targets) + 0.1 * h.square().sum(), (z, h)

    def weighted(model: nn.Module) -> tuple[Tensor, object]:
        z = model(x)[:, 0]
        return 3.0 * (torch.linspace(0, 1, N, dtype=torch.float64) * (z - targets[:, 0]).square()).sum() / N, z

    def attention(model: nn.Module) -> tuple[Tensor, object]:
        z = model(sequence).mean(dim=1)
        return F.cross_entropy(z, labels), z

    def several_batches(model: nn.Module) -> tuple[Tensor, object]:
        inside, edge, there = model(x), model(data(3, 6, seed=3)), model(data(N, 6, seed=4))
        loss = F.mse_loss(inside, targets) + 2.0 * edge.square().mean() + 0.5 * there.square().sum()
        return loss, {"inside": inside, "edge": edge, "there": there}

    x_ = data(N, 6).requires_grad_()

    def equation(model: nn.Module) -> tuple[Tensor, object]:
        inside, edge = x_, data(2, 6, seed=3)
        u = model(inside)
        residual = torch.autograd.grad(u.sum(), inside, create_graph=True)[0].sum(1, keepdim=True) - u.sin()
        u_there = model(edge)
        return residual.square().mean() + 10.0 * u_there.square().mean(), (residual, u_there)

    def equation_of_its_own_points(model: nn.Module) -> tuple[Tensor, object]:
        inside = x.clone().requires_grad_()
        u = model(inside)
        (slope,) = torch.autograd.grad(u.sum(), inside, create_graph=True)
        (bend,) = torch.autograd.grad(slope[:, 0].sum(), inside, create_graph=True)
        residual = bend[:, :1] + slope[:, 1:2] * u
        return residual.square().mean(), residual

    torch.manual_seed(0)
    transformer = nn.TransformerEncoderLayer(3, 1, 8, dropout=0.0, batch_first=True).double()
    return {
        "mse": (mlp(6, 5, 2), loss(F.mse_loss, x, targets)),
        "sum": (mlp(6, 5, 2), loss(F.mse_loss, x, targets, reduction="sum")),
        "cross-entropy": (mlp(6, 5, 3), loss(F.cross_entropy, x, labels)),
        "reshaped by N": (Merged(), loss(F.mse_loss, x, targets)),
        "convolutions": (convolutional(), loss(F.cross_entropy, image, labels)),
        "normalised by fixed statistics": (frozen_norm(), loss(F.cross_entropy, x, labels)),
        "two outputs": (mlp(6, 5, 2)[::2], two_outputs),
        "samples weighted": (mlp(6, 5, 1), weighted),
        "attention": (transformer, attention),
        "an equation and its boundary": (mlp(6, 5, 1), equation),
        "an equation at points of its own": (mlp(6, 5, 1), equation_of_its_own_points),
        "several batches": (mlp(6, 5, 2), several_batches),
    }


def factored(
    model: nn.Module, forward: Callable[[nn.Module], tuple[Tensor, object]]
) -> tuple[list[nn.Parameter], GGN, list[Roots], Any, Tensor]:
    """Parameters, G, √H, R and ρ."""
    params = list(model.parameters())
    G = ggn(lambda: forward(model), params)
    found = G.roots()
    return params, G, found, *G.rows(found)[:2]


@pytest.mark.parametrize("name", closures())
def test_rows_are_those_of_the_ggn(name: str) -> None:
    model, forward = closures()[name]
    params, G, found, R, rho = factored(model, forward)
    P = sum(p.numel() for p in params)
    expected = dense(lambda v: G @ v, torch.zeros(P, dtype=torch.float64))
    torch.testing.assert_close(R.T @ R, expected, rtol=1e-9, atol=1e-11)
    gradient = flat(torch.autograd.grad(forward(model)[0], params, allow_unused=True), params)
    torch.testing.assert_close(R.T @ rho, gradient, rtol=1e-7, atol=1e-9)
    assert sum(root.rows for root in found) == len(R) == len(rho)


@pytest.mark.parametrize("bytes_at_once", [1, 2000])
@pytest.mark.parametrize("name", ["cross-entropy", "an equation and its boundary"])
def test_rows_are_the_same_in_pieces(name: str, bytes_at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One sample at a time, and a few, which do not divide N."""
    model, forward = closures()[name]
    *_, whole, _ = factored(model, forward)
    monkeypatch.setattr(jacobian, "CHUNK_BYTES", bytes_at_once)
    *_, R, _ = factored(model, forward)
    torch.testing.assert_close(R, whole, rtol=1e-12, atol=1e-14)


@pytest.fixture
def in_factors(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """However few rows there are, and however little is gained."""
    monkeypatch.setattr(jacobian, "LARGE", 0)
    monkeypatch.setattr(outer_products, "WORTH", 0.0)
    jacobian._backwards.clear()
    yield
    jacobian._backwards.clear()


WITHOUT_FACTORS = {"attention"}


@pytest.mark.parametrize("bytes_at_once", [1, 2**24])
@pytest.mark.parametrize("name", closures())
def test_rows_in_factors_are_the_same(
    name: str, bytes_at_once: int, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, forward = closures()[name]
    _, G, found, expected, _ = factored(model, forward)
    some = [root.sample(0.4) for root in found]
    part = G.rows(some)[0]
    request.getfixturevalue("in_factors")
    monkeypatch.setattr(jacobian, "CHUNK_BYTES", bytes_at_once)
    R = G.rows(found)[0]
    assert isinstance(R, OuterRows) == (name not in WITHOUT_FACTORS)
    torch.testing.assert_close(whole(R), expected, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(whole(G.rows(some)[0]), part, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("above", [0, 1])
def test_only_large_rows_are_in_factors(above: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = mlp(6, 150, 150, 1)
    numbers = N * sum(p.numel() for p in model.parameters())
    monkeypatch.setattr(jacobian, "LARGE", numbers + above)
    _, G, found, R, _ = factored(model, lambda model: (F.mse_loss(z := model(data(N, 6)), data(N, 1, seed=1)), z))
    assert isinstance(R, OuterRows) == (not above)
    if isinstance(R, OuterRows):  # biases, and the last weight, of shape (1, 150), have nothing to gain
        assert [isinstance(block, Outer) for block in R.blocks] == [True, False, True, False, False, False]
    v = data(numbers // N, seed=2)
    torch.testing.assert_close(R.T @ (R @ v), G @ v, rtol=1e-9, atol=1e-11)
    assert len(found) == 1


def test_what_cannot_be_traced_is_mapped(in_factors: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless the program takes derivatives itself, which has to be traced."""

    def untraceable(*_: object) -> None:
        raise RuntimeError("not this")

    monkeypatch.setattr(jacobian, "traced", untraceable)
    monkeypatch.setattr(GGN_MODULE, "ROW_BY_ROW", 0)
    _, G, _, R, _ = factored(*closures()["mse"])
    v = data(R.shape[1], seed=2)
    torch.testing.assert_close(R.T @ (R @ v), G @ v, rtol=1e-9, atol=1e-11)
    model, forward = closures()["an equation at points of its own"]
    equation = ggn(lambda: forward(model), model.parameters())
    with pytest.raises(NotBySampleError, match="not this"):
        equation.rows(equation.roots())


@pytest.mark.parametrize("name", closures())
def test_rows_of_a_sample_are_some_of_all_and_count_for_all(name: str) -> None:
    model, forward = closures()[name]
    _, G, found, R, _ = factored(model, forward)
    some = [root.sample(0.4) for root in found]
    part = G.rows(some)[0]
    taken, scales, before = [], [], 0
    for root, few in zip(found, some, strict=True):
        assert few.chosen is not None
        n, r, _ = root.blocks.shape
        assert len(few.chosen) == math.ceil(0.4 * n)
        taken.append((before + few.chosen[:, None] * r + torch.arange(r)).flatten())
        scales.append(torch.full((len(few.chosen) * r, 1), (n / len(few.chosen)) ** 0.5, dtype=torch.float64))
        before += n * r
    torch.testing.assert_close(part, torch.cat(scales) * R[torch.cat(taken)], rtol=1e-9, atol=1e-11)
    everything = G.rows([root.sample(1.0) for root in found])[0]
    torch.testing.assert_close(everything, R, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", closures())
def test_what_a_step_does_to_the_outputs(name: str) -> None:
    """√H (z(θ + p) − z(θ)) beside the closure run at θ + p, and Jᵀ of it beside the rows."""
    model, forward = closures()[name]
    params, G, found, R, _ = factored(model, forward)
    step = 0.1 * data(sum(p.numel() for p in params), seed=2)
    change, pulled = G.change(found, step), G.pulled_change(step)
    (_, before) = forward(model)
    with torch.no_grad():
        for p, s in zip(params, step.split([p.numel() for p in params]), strict=True):
            p.add_(s.view_as(p))
    (_, after) = forward(model)
    moved = [(a - b).detach() for a, b in zip(tree_leaves(after), tree_leaves(before), strict=True)]
    expected = torch.cat([root.times(moved) for root in found])
    torch.testing.assert_close(change, expected, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(pulled, R.T @ change, rtol=1e-7, atol=1e-9)


def test_directions_without_curvature_have_no_rows() -> None:
    model, (x, y) = mlp(6, 5, 4), (data(N, 6), data(N, seed=1))

    def forward() -> tuple[Tensor, Tensor]:
        z = model(x)
        return (z[:, 2] - y).square().mean(), z

    (root,) = ggn(forward, model.parameters()).roots()
    assert root.blocks.shape == (N, 1, 4)


def batch_norm() -> tuple[nn.Module, Forward]:
    model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).double()
    return model, lambda: (F.mse_loss(z := model(data(N, 6)), data(N, 2, seed=1)), z)


def attends_across_samples() -> tuple[nn.Module, Forward]:
    model = mlp(6, 4)
    return model, lambda: (F.mse_loss(z := (h := model(data(N, 6))) @ h.T @ h, data(N, 4, seed=1)), z)


def contrastive() -> tuple[nn.Module, Forward]:
    model = mlp(6, 4)
    return model, lambda: (F.cross_entropy((z := model(data(N, 6))) @ z.T, torch.arange(N)), z)


def variance_of_the_batch() -> tuple[nn.Module, Forward]:
    model = mlp(6, 1)
    return model, lambda: ((z := model(data(N, 6))).var(), z)


def connected_batches() -> tuple[nn.Module, Forward]:
    model = mlp(6, 1)
    return model, lambda: (((a := model(data(N, 6))).sum() + (b := model(data(3, 6))).sum()).square(), (a, b))


@pytest.mark.parametrize(
    "make", [batch_norm, attends_across_samples, contrastive, variance_of_the_batch, connected_batches]
)
def test_what_connects_samples_is_refused(
    make: Callable[[], tuple[nn.Module, Forward]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(GGN_MODULE, "ROW_BY_ROW", 0)
    model, forward = make()
    G = ggn(forward, model.parameters())
    assert isinstance(G, GGN)
    with pytest.raises(NotBySampleError):
        G.rows(G.roots())


def cut_from_one_batch() -> tuple[nn.Module, Forward]:
    """As DeepXDE has it: the network runs on all points, boundary first, and residuals are cut from its outputs."""
    model, x = mlp(2, 1), data(9, 2).requires_grad_()

    def forward() -> tuple[Tensor, list[Tensor]]:
        u = model(x)
        (slopes,) = torch.autograd.grad(u.sum(), x, create_graph=True)
        parts = [u[:2], (slopes[:, :1] + u)[2:]]
        return sum(part.square().mean() for part in parts), parts

    return model, forward


@pytest.mark.parametrize("make", [batch_norm, attends_across_samples, cut_from_one_batch])
def test_few_rows_are_had_one_by_one_where_samples_cannot_be_taken_apart(
    make: Callable[[], tuple[nn.Module, Forward]],
) -> None:
    model, forward = make()
    G = ggn(forward, model.parameters())
    assert isinstance(G, GGN)
    R, rho, passes = G.rows(G.roots())
    assert passes == len(R)
    P = R.shape[1]
    dense = torch.stack([G @ e for e in torch.eye(P, dtype=R.dtype)], dim=1)
    torch.testing.assert_close(R.T @ R, dense, rtol=1e-8, atol=1e-10)
    gradient = torch.autograd.grad(forward()[0], list(model.parameters()))
    torch.testing.assert_close(R.T @ rho, torch.cat([g.reshape(-1) for g in gradient]), rtol=1e-8, atol=1e-10)


def test_too_many_rows_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    model, forward = cut_from_one_batch()
    monkeypatch.setattr(GGN_MODULE, "ROW_BY_ROW", 8)
    G = ggn(forward, model.parameters())
    assert isinstance(G, GGN)
    with pytest.raises(NotBySampleError):
        G.rows(G.roots())


def one_number() -> tuple[nn.Module, Forward]:
    model = mlp(6, 1)
    return model, lambda: ((z := model(data(N, 6)).sum()).square(), z)


def test_batches_of_which_only_the_sum_counts_are_refused() -> None:
    z = [data(N, 1), data(3, 1)]

    def connecting(w: list[Tensor]) -> list[Tensor]:
        return [w[0] + w[1].sum(), w[1] + w[0].sum()]

    with pytest.raises(NotBySampleError, match="connects outputs of several batches"):
        roots(connecting, z)


def test_outputs_that_are_no_samples_are_refused() -> None:
    model, forward = one_number()
    with pytest.raises(NotBySampleError, match="are not all of samples"):
        ggn(forward, model.parameters()).roots()


def test_too_large_a_hessian_of_the_loss_is_refused_before_it_is_computed() -> None:
    with pytest.raises(NotBySampleError, match="60000 samples with 784 outputs"):
        roots(lambda w: pytest.fail("a product was asked for"), [torch.empty(60_000, 784, device="meta")])


def test_a_loss_that_is_not_convex_is_refused() -> None:
    z = data(N, 2)
    with pytest.raises(NotBySampleError, match="not convex"):
        roots(lambda w: [-w[0]], [z])
