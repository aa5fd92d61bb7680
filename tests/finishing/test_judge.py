import pytest
import torch
from tests.finishing.tasks import examples, network, state
from torch import nn
from torch.nn.functional import cross_entropy

from latephase.finishing.judge import FEWEST, Judge, undisturbed
from latephase.finishing.task import task_of
from latephase.tasks.split import Split

CPU = torch.device("cpu")


def judge(count=120, **options):
    optimizer = options.pop("optimizer", None)
    return Judge(task_of(cross_entropy, optimizer, 10, closure=False), Split(*examples(count)), CPU, "loss", **options)


@pytest.mark.parametrize("count", [1, 120, 4500])
def test_the_score_is_the_mean_loss_in_evaluation_mode(count):
    model = network(0, nn.Dropout(0.5), nn.BatchNorm1d(6))
    score = judge(count)(model)
    model.eval()
    x, y = examples(count)
    assert score == pytest.approx(cross_entropy(model(x), y).item(), rel=1e-12)


def test_the_l2_term_is_added_if_asked_for():
    model = network()
    sgd = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.01)
    squares = sum(p.square().sum().item() for p in model.parameters())
    with_l2, without = judge(with_l2=True, optimizer=sgd)(model), judge(optimizer=sgd)(model)
    assert with_l2 - without == pytest.approx(0.005 * squares, rel=1e-9)


def test_a_look_changes_nothing():
    model = network(0, nn.BatchNorm1d(6), nn.Dropout(0.5))
    model[1].eval()
    before, random = state(model), torch.get_rng_state()
    judge()(model)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert [layer.training for layer in model] == [True, False, True, True, True]


def test_modes_come_back_after_an_error():
    model = network()
    with pytest.raises(KeyboardInterrupt), undisturbed(model, CPU):
        raise KeyboardInterrupt
    assert model.training


def test_fewer_examples_are_a_fixed_random_part():
    whole, part = judge(), judge().on(30, seed=1)
    assert len(part.examples) == 30
    assert part.name == "loss on 30 of 120 examples"
    assert torch.equal(part.examples.inputs, judge().on(30, seed=1).examples.inputs)
    assert not torch.equal(part.examples.inputs, judge().on(30, seed=2).examples.inputs)
    rows = {tuple(row) for row in whole.examples.inputs.tolist()}
    assert len({tuple(row) for row in part.examples.inputs.tolist()} & rows) == 30
    assert whole.on(500, seed=1) is whole


def test_as_many_are_looked_at_as_can_be_paid_for():
    model = network()
    assert judge(100).affordable(1e-9, model) == 100
    assert judge(5000).affordable(1e-9, model) == FEWEST
    assert judge(5000).affordable(1e9, model) == 5000


@pytest.mark.parametrize("result", [2.5, torch.tensor(2.5), (torch.tensor(2.5), torch.ones(3))])
def test_a_closure_returns_a_loss_and_perhaps_outputs(result):
    assert judge(closure=lambda: result)(network()) == 2.5


def test_a_closure_that_returns_no_loss_is_refused():
    with pytest.raises(TypeError, match="must return a loss"):
        judge(closure=lambda: "2.5")(network())
