import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.finishing.tasks import assert_same, examples, least_squares, network, state
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import latephase
from latephase import HessianFree, finish
from latephase.finishing.candidates import STRATEGIES
from latephase.finishing.journal import FILE

LOSS = nn.CrossEntropyLoss()
BUDGET = "2000gradients"


def sgd(model, **options):
    return torch.optim.SGD(model.parameters(), **{"lr": 0.3, "momentum": 0.5, "weight_decay": 1e-3, **options})


def finished(model=None, *, budget=BUDGET, **options):
    model = network() if model is None else model
    options.setdefault("optimizer", sgd(model))
    valid, size = options.pop("valid_data", examples(60, seed=2)), options.pop("batch_size", 40)
    report = finish(
        model, LOSS, examples(), budget=budget, valid_data=valid, batch_size=size, progress=False, **options
    )  # fmt: skip
    return model, report


def score_of(model, data):
    model.eval()
    with torch.no_grad():
        return LOSS(model(data[0]), data[1]).item()


def plain(report):
    return [phase.to_json() for phase in report.phases]


def test_the_network_ends_in_the_best_state_that_was_seen():
    before = score_of(network(), examples(60, seed=2))
    model, report = finished()
    assert report.score_before == pytest.approx(before, rel=1e-12)
    assert report.score == pytest.approx(score_of(model, examples(60, seed=2)), rel=1e-12)
    assert report.score == min(point.score for phase in report.phases for point in phase.points)
    assert report.score < 0.8 * before
    assert_same(report.state, state(model))


def test_all_strategies_are_tried_and_one_is_chosen():
    _, report = finished()
    assert {phase.candidate for phase in report.phases if phase.trial} == set(STRATEGIES)
    assert [phase for phase in report.phases if not phase.trial]
    first = next(phase for phase in report.phases if not phase.trial)
    assert first.begin <= 0.12  # a tenth, and by how much a step costs more than the one before
    assert report.phases[-1].end <= 1.0
    assert report.gradients <= 2000
    assert report.decisions
    assert first.reason in report.decisions[0]


def test_a_budget_of_gradients_repeats_to_the_bit():
    (one, first), (other, second) = finished(), finished()
    assert_same(state(one), state(other))
    assert plain(first) == plain(second)


def test_another_seed_is_another_finish():
    assert plain(finished(seed=1)[1]) != plain(finished()[1])


class EnoughError(Exception):
    pass


class After:
    """A callback that ends the finish after so many calls."""

    def __init__(self, calls):
        self.left = calls

    def __call__(self, report):
        self.left -= 1
        if self.left < 0:
            raise EnoughError


def made(normalised):
    return network(0, nn.BatchNorm1d(6), nn.Dropout(0.2)) if normalised else network()


@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize("calls", [0, 3, 7, 12, 19])
def test_what_is_broken_off_goes_on_to_the_bit(tmp_path, calls, normalised):
    model, report = finished(made(normalised))
    with pytest.raises(EnoughError):
        finished(made(normalised), out=tmp_path, callbacks=[After(calls)])
    resumed, again = finished(made(normalised), out=tmp_path)
    assert_same(state(resumed), state(model))
    assert plain(again) == plain(report)
    assert again.gradients == report.gradients


def test_a_finish_that_is_done_is_not_done_again(tmp_path):
    model, report = finished(out=tmp_path)
    resumed, again = finished(out=tmp_path)
    assert_same(state(resumed), state(model))
    assert plain(again) == plain(report)


SCRIPT = """
import sys
import tests.conftest  # as many threads as here: their number decides how sums are rounded
from tests.finishing.test_call import finished
finished(out=sys.argv[1])
"""


def killed_once(folder, after):
    """A process that finishes, killed after so many seconds, wherever it is; whether it was still at work."""
    root = Path(latephase.__file__).parents[1]
    paths = os.pathsep.join([str(Path(__file__).parents[2]), str(root)])
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(folder)], env={**os.environ, "PYTHONPATH": paths})
    file = folder / FILE
    before = file.stat().st_mtime_ns if file.exists() else 0
    while (not file.exists() or file.stat().st_mtime_ns == before) and process.poll() is None:
        time.sleep(0.001)  # until it has begun
    try:
        process.wait(timeout=after)
    except subprocess.TimeoutExpired:
        process.kill()
    return process.wait() == -signal.SIGKILL


def test_a_process_that_is_killed_at_random_moments_loses_nothing(tmp_path):
    moments = random.Random(0)
    kills = sum(killed_once(tmp_path, moments.uniform(0.0, 1.0)) for _ in range(3))
    assert kills > 0
    resumed, again = finished(out=tmp_path)
    model, report = finished()
    assert_same(state(resumed), state(model))
    assert plain(again) == plain(report)


def test_a_folder_of_another_finish_is_refused(tmp_path):
    finished(out=tmp_path)
    with pytest.raises(ValueError, match="other seed"):
        finished(out=tmp_path, seed=5)
    with pytest.raises(ValueError, match="other budget"):
        finished(out=tmp_path, budget="9gradients")


def test_a_full_disk_is_said_and_does_not_end_the_finish(tmp_path, monkeypatch):
    def full(*args, **options):
        raise OSError("no space left")

    monkeypatch.setattr(torch, "save", full)
    with pytest.warns(UserWarning, match="could not be written"):
        model, report = finished(out=tmp_path)
    assert_same(state(model), state(finished()[0]))
    assert any("no space left" in remark for remark in report.remarks)


@pytest.mark.parametrize("error", [EnoughError, KeyboardInterrupt])
def test_what_a_callback_raises_leaves_the_best_state(error):
    model, seen = network(), []

    def callback(report):
        seen.append(report.score)
        if len(seen) == 8:
            raise error

    with pytest.raises(error):
        finished(model, callbacks=[callback])
    assert score_of(model, examples(60, seed=2)) == pytest.approx(seen[-1], rel=1e-12)


def test_modes_and_random_streams_are_as_they_were():
    model = network(0, nn.Dropout(0.5))
    model.eval()
    model[1].train()
    torch.manual_seed(3), random.seed(3), np.random.seed(3)
    expected = torch.rand(1).item(), random.random(), np.random.random()
    torch.manual_seed(3), random.seed(3), np.random.seed(3)
    finished(model)
    assert not model.training
    assert model[1].training
    assert (torch.rand(1).item(), random.random(), np.random.random()) == expected


def test_the_users_optimizer_is_not_changed():
    model = network()
    optimizer = sgd(model)
    LOSS(model(examples()[0]), examples()[1]).backward()
    optimizer.step()
    before = [value["momentum_buffer"].clone() for value in optimizer.state.values()]
    finished(model, optimizer=optimizer)
    assert [group["lr"] for group in optimizer.param_groups] == [0.3]
    assert all(torch.equal(a, b["momentum_buffer"]) for a, b in zip(before, optimizer.state.values(), strict=True))


def test_its_learning_rate_and_moments_are_used():
    one, _ = finished(strategies=["decay"])
    model = network()
    other, _ = finished(model, strategies=["decay"], optimizer=sgd(model, lr=0.1))
    assert any(not torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_one_strategy_alone_gets_all(strategy):
    _, report = finished(strategies=[strategy])
    assert {phase.candidate for phase in report.phases} == {strategy}
    assert not any(phase.trial for phase in report.phases)
    assert report.score < report.score_before


def test_a_strategy_that_fails_is_out_and_the_others_go_on():
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, grad):
            return grad

    class Layer(nn.Module):
        def forward(self, x):
            return Once.apply(x)

    _, report = finished(network(0, Layer()))
    (failed,) = [phase for phase in report.phases if phase.candidate == "hessian-free"]
    assert "failed" in failed.outcome
    assert "Once" in failed.outcome
    assert report.score < report.score_before


def test_an_error_of_the_loss_is_raised():
    def loss(outputs, targets):
        raise RuntimeError("a fault of my own")

    with pytest.raises(RuntimeError, match="a fault of my own"):
        finish(network(), loss, examples(), budget=BUDGET, progress=False)


def test_an_error_only_in_training_mode_is_raised():
    class Layer(nn.Module):
        def forward(self, x):
            if self.training:
                raise RuntimeError("a fault of my own")
            return x

    with pytest.raises(RuntimeError, match="a fault of my own"):
        finished(network(0, Layer()))


def test_a_network_that_is_not_finite_is_refused():
    model = network()
    nn.init.constant_(model[0].weight, float("nan"))
    with pytest.raises(ValueError, match="the held-out loss of the network as given is nan"):
        finished(model)


def test_a_decay_that_diverges_leaves_the_best_state():
    model = network()
    _, report = finished(model, optimizer=sgd(model, lr=1e200, momentum=0.0), strategies=["decay"])
    assert report.score <= report.score_before
    assert "diverged" in report.phases[0].outcome
    assert all(bool(p.isfinite().all()) for p in model.parameters())


def test_without_held_out_data_the_objective_judges():
    model, report = finished(valid_data=None)
    assert report.judged_by == "objective"
    assert any("without held-out data" in remark for remark in report.remarks)
    l2 = 0.5 * 1e-3 * sum(p.square().sum().item() for p in model.parameters())
    assert report.score == pytest.approx(score_of(model, examples()) + l2, rel=1e-12)
    assert finished(judge="objective")[1].score == report.score


@pytest.mark.parametrize("budget", ["0.5gradients", 1e-6])
def test_a_budget_smaller_than_a_step_harms_nothing(budget):
    model, report = finished(budget=budget)
    assert report.score <= report.score_before
    assert score_of(model, examples(60, seed=2)) == pytest.approx(report.score, rel=1e-12)


def test_seconds_are_kept_to():
    _, report = finished(budget="1s")
    assert report.seconds < 3.0  # 1 and the last step, on a busy machine


def test_frozen_parameters_stay():
    model = network()
    model[0].requires_grad_(False)
    before = state(model[0])
    finished(model, optimizer=torch.optim.Adam(model[2].parameters()))
    assert_same(state(model[0]), before)


def test_a_closure_is_enough():
    model, closure, _ = least_squares()
    report = finish(model, closure, budget="4000gradients", progress=False)
    assert report.score < 1e-20
    assert report.best_by in ("hessian-free", "l-bfgs")
    assert "averaging" not in {phase.candidate for phase in report.phases}
    assert closure()[0].item() == pytest.approx(report.score)


def test_a_closure_may_differentiate_by_its_inputs_and_be_judged_by_another():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    x = torch.linspace(0, 1, 20, dtype=torch.float64)[:, None].requires_grad_()

    def closure():
        (slope,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
        r = torch.cat([slope + model(x), model(torch.zeros(1, 1, dtype=torch.float64)) - 1])
        return r.square().mean(), r

    def error():
        return (model(x) - torch.exp(-x)).square().mean()

    report = finish(model, closure, budget="3000gradients", valid_data=error, progress=False)
    assert report.judged_by == "held-out loss"
    assert report.score == pytest.approx(error().item(), rel=1e-9)
    assert report.score < 1e-3 * report.score_before


def test_batches_come_from_a_loader():
    loader = DataLoader(TensorDataset(*examples()), batch_size=40, shuffle=True)
    model = network()
    finish(model, LOSS, loader, budget=BUDGET, valid_data=examples(60, seed=2), optimizer=sgd(model), progress=False)
    assert_same(state(model), state(finished()[0]))


@pytest.mark.parametrize("make", [HessianFree, torch.optim.LBFGS])
def test_what_steps_on_closures_is_not_continued(make):
    model = network()
    _, report = finished(model, optimizer=make(model.parameters()))
    assert any("cannot be continued" in remark for remark in report.remarks)
    assert report.score < report.score_before


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"budget": "soon"}, ValueError, "10min"),
        ({"budget": None}, TypeError, "budget must be seconds"),
        ({"judge": "me"}, ValueError, "judge"),
        ({"judge": "valid", "valid_data": None}, ValueError, "needs valid_data"),
        ({"strategies": ["luck"]}, ValueError, "strategies"),
        ({"strategies": []}, ValueError, "strategies"),
        ({"batch_size": 0}, ValueError, "batch_size"),
        ({"seed": -1}, ValueError, "seed"),
        ({"callbacks": [3]}, TypeError, "callbacks"),
        ({"optimizer": 3}, TypeError, "optimizer must be"),
        ({"valid_data": 3}, TypeError, "valid_data must be"),
        ({"optimizer": torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.1)}, ValueError, "not the model's"),
    ],
)
def test_what_cannot_be_is_refused(change, error, message):
    model = network()
    before = state(model)
    with pytest.raises(error, match=message):
        finished(model, **change)
    assert_same(state(model), before)


def test_a_network_is_needed():
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module"):
        finish(3, LOSS, examples(), budget=1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="parameter to train"):
        finish(nn.ReLU(), LOSS, examples(), budget=1)


def test_a_group_that_is_none_changes_nothing():
    model = network().eval()
    before = torch.get_rng_state()
    for group, error in (("everybody", ValueError), ("world", RuntimeError)):
        with pytest.raises(error, match="process_group"):
            finished(model, process_group=group)
    assert not model.training
    assert torch.equal(torch.get_rng_state(), before)
