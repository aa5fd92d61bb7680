"""Curvature products: beside dense matrices from another definition, and what must always hold."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests import reference
from tests.cases import CASES, Case, case, each_case
from tests.comparison import assert_close, normal_vector, property_test, seeds
from torch import Tensor, nn

from latephase.curvature import ggn, hessian

Forward = Callable[[], tuple[Tensor, Tensor]]

OPERATORS = {"ggn": ggn, "hessian": hessian}
DENSE = {"ggn": reference.ggn, "hessian": reference.hessian}

each_curvature = pytest.mark.parametrize("kind", ["ggn", "hessian"])


def closure(
    case: Case, model: nn.Module, seed: int = 0, reduction: str = "mean"
) -> Callable[[], tuple[Tensor, Tensor]]:
    inputs, targets = case.batch(9, seed)

    def forward() -> tuple[Tensor, Tensor]:
        outputs = model(inputs)
        return case.loss_func(reduction)(outputs, targets), outputs

    return forward


def matrix(C: object, size: int) -> Tensor:
    """The whole matrix, from its product with the identity."""
    return C @ torch.eye(size, dtype=torch.float64)


def size_of(params: Iterable[Tensor]) -> int:
    return sum(p.numel() for p in params)


@cache
def dense(name: str, kind: str) -> Tensor:
    """The matrix of a case at its first weights on its first batch."""
    network = reference.Network(case(name).model(), case(name).loss_func())
    return DENSE[kind](network, network.theta(), case(name).batch(9, 0))


# ---------------------------------------------------------------------- beside the dense matrix


@each_case()
def test_the_two_definitions_of_the_ggn_agree(case: Case):
    network = reference.Network(case.model(), case.loss_func())
    assert_close(reference.linearised_hessian(network, network.theta(), case.batch(9, 0)), dense(case.name, "ggn"))


@each_case()
@each_curvature
def test_products(case: Case, kind: str):
    model = case.model()
    C = OPERATORS[kind](closure(case, model), model.parameters())
    A = dense(case.name, kind)
    for seed in range(3):
        v = normal_vector(len(A), seed)
        assert_close(C @ v, A @ v)


@each_case()
@each_curvature
def test_products_with_matrices(case: Case, kind: str):
    model = case.model()
    C = OPERATORS[kind](closure(case, model), model.parameters())
    A = dense(case.name, kind)
    V = normal_vector(3 * len(A), 0).view(3, len(A)).T
    assert_close(C @ V, A @ V)
    assert_close(C @ V[:, :1], A @ V[:, :1])


@each_curvature
def test_the_reduction_is_that_of_the_loss(kind: str):
    problem = case("mlp-cross-entropy")
    model = problem.model()
    C = OPERATORS[kind](closure(problem, model, reduction="sum"), model.parameters())
    A = dense(problem.name, kind)
    assert_close(matrix(C, len(A)), 9.0 * A)


@each_curvature
def test_the_order_of_the_parameters_is_that_of_the_entries(kind: str):
    problem = case("mlp-mse")
    model = problem.model()
    params = list(model.parameters())
    positions = torch.arange(size_of(params)).split([p.numel() for p in params])
    C = OPERATORS[kind](closure(problem, model), reversed(params))
    order = torch.cat(positions[::-1])
    assert_close(matrix(C, len(order)), dense(problem.name, kind)[order][:, order])


@each_curvature
def test_some_of_the_parameters_give_a_diagonal_block(kind: str):
    problem = case("gru-cross-entropy")
    model = problem.model()
    params = list(model.classifier.parameters())
    size = size_of(params)
    C = OPERATORS[kind](closure(problem, model), params)
    assert_close(matrix(C, size), dense(problem.name, kind)[-size:, -size:])


@each_curvature
def test_a_parameter_that_the_loss_does_not_use_has_zeros(kind: str):
    problem = case("mlp-mse")
    model = problem.model()
    unused = nn.Parameter(torch.ones(2, dtype=torch.float64))
    A = dense(problem.name, kind)
    C = matrix(OPERATORS[kind](closure(problem, model), [*model.parameters(), unused]), len(A) + 2)
    assert_close(C[:-2, :-2], A)
    assert not C[-2:].any()
    assert not C[:, -2:].any()


def test_the_hessian_needs_the_loss_alone():
    problem = case("mlp-mse")
    model = problem.model()
    forward = closure(problem, model)
    C = hessian(lambda: forward()[0], model.parameters())
    assert_close(matrix(C, size_of(model.parameters())), dense(problem.name, "hessian"))


@each_curvature
def test_a_product_repeated_is_the_same_to_the_bit(kind: str):
    problem = case("mlp-cross-entropy")
    model = problem.model()
    C = OPERATORS[kind](closure(problem, model), model.parameters())
    A = dense(problem.name, kind)
    v = normal_vector(len(A), 0)
    first = C @ v
    assert torch.equal(C @ v, first)
    with torch.no_grad():
        assert torch.equal(C @ v, first)


@each_curvature
def test_parameters_and_their_gradients_are_left_alone(kind: str):
    problem = case("mlp-cross-entropy")
    model = problem.model()
    before = [p.detach().clone() for p in model.parameters()]
    C = OPERATORS[kind](closure(problem, model), model.parameters())
    C @ normal_vector(size_of(before), 0)
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(p, value) for p, value in zip(model.parameters(), before, strict=True))


# ---------------------------------------------------------------------- what must always hold

cases = st.sampled_from(CASES)


@property_test
@given(cases, st.sampled_from(sorted(OPERATORS)), seeds)
def test_symmetry(case: Case, kind: str, seed: int):
    model = case.model(seed)
    C = OPERATORS[kind](closure(case, model, seed), model.parameters())
    P = size_of(model.parameters())
    u, v = normal_vector(P, seed + 1), normal_vector(P, seed + 2)
    Cu, Cv = C @ u, C @ v
    assert abs(float(u @ Cv - v @ Cu)) <= 1e-12 * float(u.norm() * Cv.norm() + v.norm() * Cu.norm())


@property_test
@given(cases.filter(lambda case: case.convex), seeds)
def test_the_ggn_of_a_convex_loss_has_no_negative_curvature(case: Case, seed: int):
    model = case.model(seed)
    C = ggn(closure(case, model, seed), model.parameters())
    P = size_of(model.parameters())
    for number in range(5):
        v = normal_vector(P, seed + number)
        assert float(v @ (C @ v)) >= 0.0


@property_test
@given(st.sampled_from(["linear-mse", "mlp-mse", "autoencoder-bce", "batch-norm-cross-entropy"]), seeds)
def test_the_ggn_of_a_convex_loss_is_positive_semi_definite(name: str, seed: int):
    model = case(name).model(seed)
    C = matrix(ggn(closure(case(name), model, seed), model.parameters()), size_of(model.parameters()))
    eigenvalues = torch.linalg.eigvalsh((C + C.T) / 2)
    assert_close(C, C.T, 1e-13)
    assert eigenvalues.min() >= -1e-13 * eigenvalues.max()
    assert eigenvalues.max() > 0.0


def test_the_hessian_has_negative_curvature_where_the_ggn_has_none():
    # Or the two could be mixed up without a test that fails.
    for one in CASES:
        if one.name != "linear-mse":
            assert torch.linalg.eigvalsh(dense(one.name, "hessian")).min() < -1e-3
            assert torch.linalg.eigvalsh(dense(one.name, "ggn")).min() > -1e-12


@property_test
@given(cases, st.sampled_from(sorted(OPERATORS)), seeds, st.floats(-3.0, 3.0))
def test_linearity(case: Case, kind: str, seed: int, factor: float):
    model = case.model(seed)
    C = OPERATORS[kind](closure(case, model, seed), model.parameters())
    P = size_of(model.parameters())
    u, v = normal_vector(P, seed + 1), normal_vector(P, seed + 2)
    together, apart = C @ (u + factor * v), C @ u + factor * (C @ v)
    assert float((together - apart).norm()) <= 1e-12 * float((C @ u).norm() + (C @ v).norm() * (1.0 + abs(factor)))
    assert not (C @ torch.zeros_like(v)).any()
