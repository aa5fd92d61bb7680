import dataclasses
import math

import pytest
import torch
from tests.study.toy import TOY, build_model, load_data, silent

from latephase.study.problems import PROBLEMS
from latephase.study.problems.check import ProblemError
from latephase.study.problems.problem import Metric
from latephase.study.runs.divergence import DivergedError
from latephase.study.runs.evaluation import Quality, evaluate
from latephase.study.runs.plan import plan_training
from latephase.study.runs.training import Checkpoint, checkpoint_epochs, train
from latephase.tasks import batches


def trained(seed=0, epochs=3, problem=TOY, since=None):
    kept: dict[int, Checkpoint] = {}
    curve = train(problem, load_data(), epochs=epochs, seed=seed, progress=silent, keep=kept.__setitem__, since=since)
    return curve, kept


def test_evaluation_measures_the_objective_and_the_held_out_data(monkeypatch):
    monkeypatch.setattr("latephase.study.runs.evaluation._CHUNK", 7)
    torch.manual_seed(0)
    model, data = build_model(), load_data()
    model.insert(1, torch.nn.Dropout(0.5))
    quality = evaluate(TOY, model, data)

    assert model.training
    model.eval()
    weights = torch.cat([model[2].weight.flatten(), model[4].weight.flatten()])
    train_outputs, test_outputs = model(data.train.inputs), model(data.test.inputs)
    expected = TOY.loss(train_outputs, data.train.targets) + 0.5 * 0.01 * weights @ weights
    assert quality.train_loss == pytest.approx(expected.item(), rel=1e-9)
    assert quality.test_loss == pytest.approx(TOY.loss(test_outputs, data.test.targets).item(), rel=1e-9)
    assert quality.train_metric == (train_outputs.argmax(1) == data.train.targets).double().mean().item()
    assert quality.test_metric == (test_outputs.argmax(1) == data.test.targets).double().mean().item()


def test_evaluation_leaves_every_layer_in_its_mode():
    model = torch.nn.Sequential(*build_model(), torch.nn.BatchNorm1d(3).double(), torch.nn.Dropout(0.5))
    model[-2].eval()
    evaluate(TOY, model, load_data())
    assert [layer.training for layer in model] == [True] * 4 + [False, True]


def test_nothing_is_measured_of_a_network_whose_loss_is_not_finite():
    def fall(outputs, targets):
        raise ValueError("no NaN, please")

    model = build_model()
    torch.nn.init.constant_(model[1].weight, 1e200)  # its square, in the L2 term, is infinite
    quality = evaluate(dataclasses.replace(TOY, metric=Metric("picky", fall)), model, load_data())
    assert quality.train_loss == math.inf
    assert all(map(math.isnan, (quality.train_metric, quality.test_loss, quality.test_metric)))


def half_mean_square(outputs, targets):
    return 0.5 * (outputs - targets[:, None]).square().mean()


@pytest.mark.parametrize(("lr", "loss"), [(1e4, r"\d.*e\+\d+"), (1e300, "nan")])
def test_a_training_that_diverges_is_no_training(lr, loss):
    """In float64, where the loss of the first is finite for long."""
    problem = dataclasses.replace(
        TOY, build_model=lambda: torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 1)).double(),
        loss=half_mean_square, lr=lr, metric=Metric("none", lambda outputs, targets: 0.0),
    )  # fmt: skip
    kept = []
    with pytest.raises(DivergedError, match=f"of 'toy' has diverged: the train loss is {loss} after epoch 1, .* lr = "):
        train(problem, load_data(), epochs=3, seed=0, progress=silent, keep=lambda number, _: kept.append(number))
    assert not kept


def test_training_counts_its_steps_its_work_and_its_time():
    curve, _ = trained(epochs=3)
    assert [p.steps for p in curve] == [p.gradients for p in curve] == [0, 7, 14, 21]  # 60 examples in batches of 8
    seconds = [p.seconds for p in curve]
    assert seconds[0] == 0
    assert seconds == sorted(set(seconds))
    assert curve[-1].train_loss < curve[0].train_loss
    assert {p.lr for p in curve} == {TOY.lr}


def losses(curve):
    return [p.train_loss for p in curve]


def test_the_seed_decides_everything_but_the_time():
    assert losses(trained(1)[0]) == losses(trained(1)[0])
    assert losses(trained(1)[0])[0] != losses(trained(2)[0])[0]


def test_progress_is_reported_up_to_the_end():
    reports = []
    train(
        TOY,
        load_data(),
        epochs=4,
        seed=0,
        progress=lambda fraction, remark: reports.append((fraction, remark)),
        keep=lambda number, checkpoint: None,
    )
    assert [fraction for fraction, _ in reports] == [0.25, 0.5, 0.75, 1.0]
    assert reports[0][1].startswith("train loss ")


def test_checkpoints_are_equally_spaced_and_the_last_is_the_end():
    assert checkpoint_epochs(350) == list(range(35, 351, 35))
    _, kept = trained(epochs=12)
    assert list(kept) == list(range(1, 11))
    assert [checkpoint.epoch for checkpoint in kept.values()] == checkpoint_epochs(12)


def test_a_long_training_is_not_evaluated_after_every_epoch(monkeypatch):
    monkeypatch.setattr("latephase.study.runs.training.POINTS", 4)
    curve, kept = trained(epochs=12)
    assert [checkpoint.curve[-1].steps // 7 for checkpoint in kept.values()] == checkpoint_epochs(12)
    monkeypatch.setattr("latephase.study.runs.training.CHECKPOINTS", 2)
    curve, _ = trained(epochs=12)
    assert [p.steps // 7 for p in curve] == [0, 3, 6, 9, 12]


def test_a_checkpoint_brings_the_network_back(tmp_path):
    curve, kept = trained()
    kept[3].save(tmp_path / "checkpoint.pt")
    checkpoint = Checkpoint.load(tmp_path / "checkpoint.pt")
    assert checkpoint.curve == curve
    model = build_model()
    model.load_state_dict(checkpoint.network)
    quality = evaluate(TOY, model, load_data())
    assert quality == Quality(**{name: getattr(curve[-1], name) for name in vars(quality)})


def noisy_model():
    return torch.nn.Sequential(*build_model(), torch.nn.Dropout(0.2), torch.nn.BatchNorm1d(3).double())


def noisy_data():
    return dataclasses.replace(
        load_data(), augment=lambda inputs, generator: inputs + torch.rand(inputs.shape, generator=generator)
    )


def test_a_training_that_is_resumed_ends_where_an_undisturbed_one_does(tmp_path):
    """With dropout, augmentation and buffers."""
    problem = dataclasses.replace(TOY, build_model=noisy_model)

    def ended(since=None):
        kept: dict[int, Checkpoint] = {}
        curve = train(problem, noisy_data(), epochs=6, seed=3, progress=silent, keep=kept.__setitem__, since=since)
        return curve, kept

    curve, kept = ended()
    kept[2].save(tmp_path / "2.pt")
    torch.rand(7)
    again, kept_again = ended(Checkpoint.load(tmp_path / "2.pt"))
    assert list(kept_again) == [3, 4, 5, 6]
    assert losses(again) == losses(curve)
    assert [p.steps for p in again] == [p.steps for p in curve]
    assert [p.seconds for p in again] == sorted(p.seconds for p in again)
    assert all(torch.equal(kept_again[6].network[name], value) for name, value in kept[6].network.items())


# ---------------------------------------------------------------------- another first phase


def test_a_first_phase_by_another_optimizer_is_that_optimizer():
    """With its schedule, which runs over the epochs; α is SGD's."""
    problem = dataclasses.replace(TOY, first_phase="adam(lr=0.01, schedule=cosine)")
    curve, kept = trained(epochs=4, problem=problem)
    torch.manual_seed(0)
    model, data, generator = build_model(), load_data(), torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters())
    stream = batches.endless(data, TOY.batch_size, generator)
    rates = [0.01 * 0.5 * (1 + math.cos(math.pi * epoch / 4)) for epoch in range(4)]
    for lr in rates:
        optimizer.param_groups[0]["lr"] = lr
        for _ in range(7):
            batch = next(stream)
            optimizer.zero_grad()
            weights = sum(p.square().sum() for p in model.parameters() if p.dim() > 1)
            (TOY.loss(model(batch.inputs), batch.targets) + 0.5 * TOY.weight_decay * weights).backward()
            optimizer.step()
    assert [p.lr for p in curve] == pytest.approx([0.01, *rates])
    for name, value in model.state_dict().items():
        torch.testing.assert_close(kept[4].network[name], value)


def test_a_first_phase_that_is_resumed_remembers_its_optimizer(tmp_path):
    problem = dataclasses.replace(TOY, first_phase="adam(lr=0.01)")
    curve, kept = trained(epochs=6, problem=problem)
    kept[2].save(tmp_path / "2.pt")
    again, _ = trained(epochs=6, problem=problem, since=Checkpoint.load(tmp_path / "2.pt"))
    assert losses(again) == losses(curve)
    forgetful = dataclasses.replace(kept[2], optimizer=kept[1].optimizer)
    assert losses(trained(epochs=6, problem=problem, since=forgetful)[0]) != losses(curve)


@pytest.mark.parametrize("first_phase", ["lbfgs", "swa", "sgd_plateau", "adam(lr=0.1, schedule=plateau)"])
def test_a_first_phase_takes_one_gradient_a_step_and_has_no_other_memory(first_phase):
    with pytest.raises(ProblemError, match="first_phase of 'toy' must be a strategy of first order without a plateau"):
        trained(problem=dataclasses.replace(TOY, first_phase=first_phase))


@pytest.mark.parametrize("first_phase", ["adamm", "adam(", "adam(rate=1)"])
def test_a_first_phase_that_there_is_not(first_phase):
    with pytest.raises(ProblemError, match="first_phase of 'toy': "):
        trained(problem=dataclasses.replace(TOY, first_phase=first_phase))


def test_a_training_of_another_first_phase_is_another(monkeypatch):
    one = plan_training("digits_cnn", epochs=1, seed=0, device="cpu")
    other = dataclasses.replace(PROBLEMS["digits_cnn"], first_phase="adam(lr=0.001)")
    monkeypatch.setitem(PROBLEMS, "digits_cnn", other)
    assert plan_training("digits_cnn", epochs=1, seed=0, device="cpu").identity != one.identity
