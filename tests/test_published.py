"""Martens' preconditioner as the optimizer makes it, beside a loop over the samples."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from latephase import HessianFree
from tests import reference
from tests.cases import Case, case, each_case
from tests.comparison import assert_close

REDUCTIONS = ["mean", "sum"]


def fisher_diagonal(case: Case, reduction: str) -> Tensor:
    """The diagonal of the empirical Fisher matrix of a case's first batch, sample by sample."""
    loss_func = case.loss_func(reduction)
    network = reference.Network(case.model(), loss_func)
    return reference.empirical_fisher_diagonal(network, network.theta(), case.batch(7, 0), reduction)


@each_case()
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_as_a_loop_over_the_samples(case: Case, reduction: str):
    model = case.model()
    opt = HessianFree(model.parameters(), damping=0.3)
    M = opt.get_preconditioner(model, case.loss_func(reduction), *case.batch(7, 0), reduction)
    diagonal = fisher_diagonal(case, reduction)
    assert_close(M(torch.ones_like(diagonal)), (diagonal + 0.3) ** -0.75)


@pytest.mark.parametrize("exponent", [0.5, 1.0])
def test_exponent_is_an_option(exponent: float):
    model = case("cnn-cross-entropy").model()
    opt = HessianFree(model.parameters(), damping=0.01)
    M = opt.get_preconditioner(
        model, case("cnn-cross-entropy").loss_func(), *case("cnn-cross-entropy").batch(7, 0), "mean", exponent
    )
    diagonal = fisher_diagonal(case("cnn-cross-entropy"), "mean")
    assert_close(M(torch.ones_like(diagonal)), (diagonal + 0.01) ** -exponent)


def test_groups_have_their_own_damping_and_weight_decay():
    problem = case("mlp-cross-entropy")
    model = problem.model()
    weight, *others = model.parameters()
    opt = HessianFree(
        [{"params": [weight], "damping": 0.1, "weight_decay": 0.5}, {"params": others, "damping": 2.0}],
        weight_decay=0.0,
    )
    M = opt.get_preconditioner(model, problem.loss_func(), *problem.batch(7, 0), "mean")
    diagonal = fisher_diagonal(problem, "mean")
    added = torch.full_like(diagonal, 2.0)
    added[: weight.numel()] = 0.1 + 0.5
    assert_close(M(torch.ones_like(diagonal)), (diagonal + added) ** -0.75)


def test_the_number_of_samples_may_exceed_any_chunk():
    problem = case("linear-mse")
    model = problem.model()
    network = reference.Network(model, problem.loss_func())
    batch = problem.batch(150, 0)
    M = HessianFree(model.parameters(), damping=1.0).get_preconditioner(model, problem.loss_func(), *batch, "mean")
    diagonal = reference.empirical_fisher_diagonal(network, network.theta(), batch, "mean")
    assert_close(M(torch.ones_like(diagonal)), (diagonal + 1.0) ** -0.75)


def test_frozen_parameters_are_left_out():
    problem = case("mlp-mse")
    model = problem.model()
    first = next(model.parameters())
    first.requires_grad_(False)
    M = HessianFree(model.parameters()).get_preconditioner(
        model, problem.loss_func(), *problem.batch(7, 0), "mean", exponent=1.0
    )
    diagonal = fisher_diagonal(problem, "mean")[first.numel() :]
    assert_close(M(torch.ones_like(diagonal)), 1.0 / (diagonal + 1.0))


def test_batch_norm_in_training_mode_is_refused_and_nothing_is_touched():
    problem = case("batch-norm-cross-entropy")
    model = problem.model().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    opt = HessianFree(model.parameters())
    with pytest.raises(ValueError, match=r"'norm' \(BatchNorm2d\).*eval"):
        opt.get_preconditioner(model, problem.loss_func(), *problem.batch(7, 0), "mean")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"reduction": "none"}, "reduction"),
        ({"exponent": 1.5}, "exponent"),
        ({"exponent": -0.5}, "exponent"),
        ({"targets": torch.zeros(3, 2)}, "targets"),
        ({"inputs": torch.zeros(0, 4), "targets": torch.zeros(0, 2)}, "at least one"),
    ],
)
def test_bad_arguments_are_named(arguments: dict, message: str):
    problem = case("mlp-mse")
    inputs, targets = problem.batch(7, 0)
    model: nn.Module = problem.model()
    given = {"inputs": inputs, "targets": targets, "reduction": "mean", **arguments}
    with pytest.raises(ValueError, match=message):
        HessianFree(model.parameters()).get_preconditioner(model, problem.loss_func(), **given)
