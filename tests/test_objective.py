"""The objective around θ, beside sums written out, and losses at trial points, each computed once."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from latephase.curvature import GGN, jacobian
from latephase.curvature.accumulate import Kind
from latephase.curvature.options import DEFAULT_OPTIONS
from latephase.distributed import ALONE, Alone
from latephase.micro_batches import Batches, MicroBatch
from latephase.objective import ClosureObjective, Given, TrialLosses
from latephase.outer_rows import OuterRows
from latephase.parameters import Parameters
from latephase.parts.solver import Factor
from latephase.transaction import Transaction
from tests.comparison import assert_close, normal_vector

KIND = Kind(GGN, DEFAULT_OPTIONS)
A = normal_vector(12, 0).view(4, 3)


class Squares:
    """½‖Aθ‖² on each of two micro-batches, with weights 1 and 2; the losses are counted."""

    def __init__(self, weight_decay: float) -> None:
        self.theta, self.calls = nn.Parameter(normal_vector(3, 1)), 0
        self.parameters = Parameters([{"params": [self.theta], "weight_decay": weight_decay}])

    def forward(self) -> tuple[Tensor, Tensor]:
        self.calls += 1
        outputs = A @ self.theta
        return 0.5 * outputs.square().sum(), outputs

    def objective(self, given: Given = Given()) -> ClosureObjective:  # noqa: B008 — a tuple
        part = [MicroBatch(self.forward, 1.0), MicroBatch(self.forward, 2.0)]
        transaction = Transaction(self.parameters)
        return ClosureObjective(self.parameters, transaction, Batches(part, part, part), KIND, given, in_memory=2)


def test_weight_decay_is_in_loss_gradient_and_curvature() -> None:
    squares, v = Squares(weight_decay=0.5), normal_vector(3, 2)
    C = 3.0 * A.T @ A + 0.5 * torch.eye(3, dtype=torch.float64)
    theta, loss_model, loss, gradient, curvature = squares.objective().expand()
    assert torch.equal(theta, squares.theta)
    assert loss_model == loss == pytest.approx(float(0.5 * theta @ C @ theta), rel=1e-12)
    assert_close(gradient, C @ theta)
    assert_close(curvature(v), C @ v)


@pytest.mark.parametrize("ranks", [ALONE, Alone()])
def test_ranks_meet_in_whole_rows(ranks: Alone, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another instance stands for several processes."""
    monkeypatch.setattr(jacobian, "LARGE", 0)
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(30, 40), nn.Tanh(), nn.Linear(40, 1)).double(), normal_vector(150, 3).view(5, 30)
    parameters = Parameters([{"params": [*model.parameters()], "weight_decay": 0.0}])
    part = [MicroBatch(lambda: ((z := model(x)).square().sum(), z), 1.0)]
    objective = ClosureObjective(parameters, Transaction(parameters), Batches(part, part, part), KIND, ranks=ranks)
    objective.expand()
    factor = objective.factor(lambda rows, samples: 1.0)
    assert isinstance(factor, Factor)
    assert isinstance(factor.R, OuterRows) == (ranks is ALONE)
    v = normal_vector(parameters.numel, 4)
    assert_close(factor.R.T @ (factor.R @ v), objective.product(v))


def test_what_is_given_is_not_computed() -> None:
    squares, v = Squares(weight_decay=0.5), normal_vector(3, 2)
    objective = squares.objective(Given(grad=v, mvp=lambda u: 7.0 * u))
    theta, loss_model, _, gradient, curvature = objective.expand()
    assert loss_model is None
    assert_close(gradient, v + 0.5 * theta)
    assert_close(curvature(v), 7.5 * v)
    assert (objective.counts.gradients, objective.counts.losses, objective.counts.products) == (0, 2, 1)


def test_a_trial_point_where_a_matrix_is_singular_is_infinitely_bad() -> None:
    squares = Squares(weight_decay=0.0)
    objective = squares.objective()
    assert objective.loss(torch.zeros(3, dtype=torch.float64)) == 0.0

    def no_loss() -> tuple[Tensor, Tensor]:
        raise torch.linalg.LinAlgError("singular")  # type: ignore[attr-defined]

    squares.forward = no_loss
    assert squares.objective().loss(torch.zeros(3, dtype=torch.float64)) == math.inf


def test_trial_losses_are_computed_once_whoever_asks() -> None:
    squares = Squares(weight_decay=0.0)
    objective, theta = squares.objective(), squares.theta.detach().clone()
    loss_at = TrialLosses(objective, theta, {2: -theta, 5: theta}, known={})
    assert loss_at(2) == 0.0
    assert loss_at(5, 0.5) == pytest.approx(loss_at(5, torch.full_like(theta, 0.5)), rel=1e-12)
    calls = squares.calls
    assert loss_at(2, 1.0) == 0.0
    assert squares.calls == calls
    assert not loss_at.all_equal(0.0)
    assert torch.equal(squares.theta, theta)
