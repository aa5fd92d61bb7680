"""Who competes for what, and with which batches."""

import math

import pytest
import torch
from tests.finishing.tasks import assert_same, examples, network, state
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

from latephase import KFAC, HessianFree
from latephase.finishing.candidates import STRATEGIES, candidates, usable
from latephase.finishing.prices import Means, Size, TooDearError, flops, gradients, size_of
from latephase.finishing.task import task_of
from latephase.strategies.continued import Continued
from latephase.strategies.first_order import FirstOrder
from latephase.tasks.split import Split

CPU = torch.device("cpu")

PLENTY = Means(1.0, math.inf)


def field(batch_size=10, count=120, optimizer=None, size=None):
    task = task_of(cross_entropy, optimizer, batch_size, closure=False)
    size = size or Size(count, 3, 51)
    return {candidate.name: candidate for candidate in candidates(task, size, optimizer)}


def closures():
    task = task_of(lambda: None, None, 1, closure=True)
    return {candidate.name: candidate for candidate in candidates(task, Size(120, 1, 51), None)}


def test_with_noise_what_averages_it_comes_first():
    assert tuple(field()) == STRATEGIES
    assert field()["decay"].longer is not None


@pytest.mark.parametrize("found", [field(batch_size=120), closures()])
def test_without_noise_curvature_comes_first_and_may_be_dear(found):
    assert tuple(found) == ("l-bfgs", "hessian-free", "decay")
    assert found["hessian-free"].dearest > field()["hessian-free"].dearest
    assert found["decay"].longer is None


def test_l_bfgs_may_be_dear_then_too_but_takes_several_iterations_in_a_step_only_where_they_are_cheap():
    lbfgs = field(batch_size=120)["l-bfgs"]
    assert lbfgs.dearest == field(batch_size=120)["hessian-free"].dearest
    assert lbfgs.build(Means(0.3, 124.0)).max_iter == 1
    assert lbfgs.build(Means(0.3, 126.0)).max_iter == 4  # a gradient each, and one before: 4 % of the budget
    assert lbfgs.build(Means(0.03, 126.0)).max_iter == 1


def test_the_optimizer_goes_on():
    adam = torch.optim.Adam(network().parameters())
    for name in ("decay", "averaging"):
        strategy = field(optimizer=adam)[name].build(PLENTY)
        assert isinstance(getattr(strategy, "steps", strategy), Continued)
        strategy = field()[name].build(PLENTY)
        assert isinstance(getattr(strategy, "steps", strategy), FirstOrder)


@pytest.mark.parametrize("make", [HessianFree, torch.optim.LBFGS, lambda parameters: KFAC(network())])
def test_what_steps_on_closures_does_not(make):
    optimizer = make(network().parameters())
    assert not usable(optimizer)
    assert isinstance(field(optimizer=optimizer)["decay"].build(PLENTY), FirstOrder)


def test_where_it_can_be_paid_hessian_free_steps_are_on_all_data():
    hf = field()["hessian-free"].build(PLENTY)
    assert (hf.curvature, hf.gradient, hf.evaluation, hf.same) == (120, 120, 120, True)
    assert hf.options == {"solver": "auto"}


def test_otherwise_they_are_the_papers_on_batches_that_can():
    large = Size(60_000, 10, 38_570)
    hf = field(128, 60_000, size=large)["hessian-free"].build(Means(0.1, 1200.0))
    assert hf.gradient == 2560  # of 120 gradients on 128 examples a step of six gradients of its own batch
    assert (hf.curvature, hf.evaluation, hf.same, hf.options) == (320, 640, False, {})
    with pytest.raises(TooDearError, match=r"costs about 20\.0% of the budget, and may cost 10\.0%"):
        field(128, 60_000, size=large)["hessian-free"].build(Means(0.1, 120.0))


def test_a_direct_step_costs_its_matrices_in_whatever_the_budget_is_in():
    counted, timed = Size(2000, 1, 1200), Size(2000, 1, 1200, flops=1e12)
    assert counted.auto_work == 20.0 + 15.0
    assert counted.matrix_share == 0.0
    assert timed.auto_work == 20.0
    assert timed.matrix_share > 0.0


def test_without_noise_there_are_no_smaller_batches_to_fall_back_to():
    with pytest.raises(TooDearError):
        field(batch_size=120)["hessian-free"].build(Means(0.1, 50.0))


def test_lbfgs_takes_as_many_iterations_as_can_be_paid():
    assert field()["l-bfgs"].build(PLENTY).max_iter == 4
    assert field()["l-bfgs"].build(Means(0.1, 300.0)).max_iter == 1
    with pytest.raises(TooDearError):
        field()["l-bfgs"].build(Means(0.1, 200.0))


def test_a_matrix_costs_where_it_would_be_made():
    small, large = Size(2000, 1, 1185, flops=1e12), Size(2000, 10, 10**6, flops=1e12)
    assert small.direct
    assert small.matrix_share == pytest.approx((2000 * 1185**2 + 1185**3) / 1e12)
    assert not large.direct
    assert large.matrix_share == 0.0


def test_flops_are_in_proportion_to_the_seconds():
    assert 2.0 < flops(100.0, CPU) / flops(10.0, CPU) < 50.0  # of a machine that has other work
    assert flops(1.0, CPU) > 1e7


def test_counting_gradients_changes_nothing():
    model = network(0, nn.BatchNorm1d(6), nn.Dropout(0.5))
    model[1].eval()
    before, random = state(model), torch.get_rng_state()
    count = gradients(10.0, task_of(cross_entropy, None, 10, closure=False), model, Split(*examples()))
    assert count > 1.0
    assert_same(state(model), before)
    assert torch.equal(torch.get_rng_state(), random)
    assert [layer.training for layer in model] == [True, False, True, True, True]
    assert all(p.grad is None for p in model.parameters())


def test_row_space_is_reckoned_with_where_weight_decay_is_the_same_for_all():
    assert Size(1000, 1, 20_000).direct
    assert not Size(1000, 1, 20_000, alike=False).direct


@pytest.mark.parametrize(("weight_decay", "alike"), [(0.0, True), (0.1, False)])
def test_weight_decay_of_weights_alone_is_not_the_same_for_all(weight_decay, alike):
    layer, points = nn.Linear(3, 2), Split(torch.ones(5, 3), torch.ones(5, 2))
    groups = [{"params": [layer.weight], "weight_decay": weight_decay}, {"params": [layer.bias]}]
    task = task_of(mse_loss, torch.optim.SGD(groups, lr=0.1), 5, closure=False)
    assert size_of(task, layer, points) == Size(5, 2, 8, alike=alike)


def test_a_matrix_is_one_of_all_processes():
    share = Size(1000, 1, 500, flops=1e12, processes=2)
    assert (
        share.matrix_share == Size(2000, 1, 500, flops=1e12).matrix_share > Size(1000, 1, 500, flops=1e12).matrix_share
    )
