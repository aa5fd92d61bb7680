import pytest
import torch
from tests.study.toy import TOY, build_model, load_data, silent

from latephase.study.evaluation import evaluate
from latephase.study.training import load_checkpoint, train


def trained(seed=0, epochs=3):
    return train(TOY, load_data(), epochs=epochs, seed=seed, progress=silent)


def test_evaluation_measures_the_objective_and_the_held_out_data(monkeypatch):
    monkeypatch.setattr("latephase.study.evaluation._CHUNK", 7)
    torch.manual_seed(0)
    model, data = build_model(), load_data()
    model.insert(1, torch.nn.Dropout(0.5))
    point = evaluate(TOY, model, data, seconds=1.5, steps=4)

    assert model.training
    model.eval()
    weights = torch.cat([model[2].weight.flatten(), model[4].weight.flatten()])
    train_outputs, test_outputs = model(data.train.inputs), model(data.test.inputs)
    expected = TOY.loss(train_outputs, data.train.targets) + 0.5 * 0.01 * weights @ weights
    assert point.train_loss == pytest.approx(expected.item(), rel=1e-9)
    assert point.test_loss == pytest.approx(TOY.loss(test_outputs, data.test.targets).item(), rel=1e-9)
    assert point.test_accuracy == (test_outputs.argmax(1) == data.test.targets).double().mean().item()
    assert (point.seconds, point.steps) == (1.5, 4)


def test_training_counts_its_steps_and_its_time():
    training = trained(epochs=3)
    assert [p.steps for p in training.curve] == [0, 7, 14, 21]  # 60 examples in batches of 8
    seconds = [p.seconds for p in training.curve]
    assert seconds[0] == 0
    assert seconds == sorted(set(seconds))
    assert training.seconds == seconds[-1]
    assert training.curve[-1].train_loss < training.curve[0].train_loss


def test_the_seed_decides_everything_but_the_time():
    def curve(seed):
        return [p.train_loss for p in trained(seed).curve]

    assert curve(1) == curve(1)
    assert curve(1)[0] != curve(2)[0]


def test_progress_is_reported_up_to_the_end():
    reports = []
    train(TOY, load_data(), epochs=4, seed=0, progress=lambda fraction, remark: reports.append((fraction, remark)))
    assert [fraction for fraction, _ in reports] == [0.25, 0.5, 0.75, 1.0]
    assert reports[0][1].startswith("train loss ")


def test_a_checkpoint_brings_the_network_back(tmp_path):
    training = trained()
    training.save(tmp_path / "checkpoint.pt")
    model = build_model()
    model.load_state_dict(load_checkpoint(tmp_path / "checkpoint.pt"))
    point = evaluate(TOY, model, load_data(), seconds=0, steps=0)
    assert point.train_loss == training.curve[-1].train_loss
    assert point.test_accuracy == training.curve[-1].test_accuracy
