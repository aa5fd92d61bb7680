"""Problems that cannot be studied are refused before anything is trained, with words."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from tests.study.toy import TOY, build_model, load_data, silent
from torch import nn

from latephase.study.data import Data, Split
from latephase.study.problems.check import ProblemError, check_data, check_network
from latephase.study.runs.training import train


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("batch_size", 0, "batch_size must be ≥ 1, not 0"),
        ("batch_size", -8, "batch_size must be ≥ 1, not -8"),
        ("batch_size", 8.0, "batch_size must be an integer ≥ 1, not 8.0"),
        ("epochs", 0, "epochs must be ≥ 1, not 0"),
        ("curvature_batch", 0, "curvature_batch must be"),
        ("gradient_batch", 0, "gradient_batch must be"),
        ("evaluation_batch", 0, "evaluation_batch must be"),
        ("cpu_threads", 0, "cpu_threads must be"),
        ("lr", float("nan"), "lr must be ≥ 0 and finite, not nan"),
        ("lr", 0.0, "lr must be > 0, not 0.0"),
        ("lr", -0.1, "lr must be"),
        ("weight_decay", -1.0, "weight_decay must be"),
        ("weight_decay", float("inf"), "weight_decay must be"),
        ("loss", None, "loss must be callable, not None"),
        ("load_data", "data", "load_data must be callable, not 'data'"),
        ("build_model", 3, "build_model must be callable, not 3"),
    ],
)
def test_settings_are_checked_where_they_are_made(name, value, message):
    with pytest.raises((ValueError, TypeError), match=message):
        replace(TOY, **{name: value})


def split(n, targets=None):
    examples = load_data().train
    return Split(examples.inputs[:n], examples.targets[: n if targets is None else targets])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "load_data of 'toy' must return latephase.study.data.Data, not None"),
        ((split(9), split(9)), "load_data of 'toy' must return latephase.study.data.Data, not tuple"),
        (Data(split(9), None), "test of the data of 'toy' must be a latephase.study.data.Split, not None"),
        (Data(split(9), split(0)), "test of the data of 'toy' must have at least one example, not 0"),
        (Data(split(0), split(9)), "train of the data of 'toy' must have at least one example, not 0"),
        (Data(split(9), split(9, 8)), "test of the data of 'toy' must have as many inputs as targets, not 9 and 8"),
        (Data(Split([1.0], [2]), split(9)), "inputs must be a tensor whose first dimension counts .*, not list"),
        (Data(split(9), Split(torch.ones(1), torch.tensor(1))), r"targets must be .*, not a tensor of shape \(\)"),
        (Data(split(7), split(9)), "batch_size of 'toy' must be from 1 to 7, the number of training examples, not 8"),
    ],
)
def test_data_that_are_none_are_refused(data, message):
    with pytest.raises(ProblemError, match=message):
        check_data(TOY, data)


def test_a_batch_may_be_as_large_as_the_data():
    data = Data(split(8), split(1))
    assert check_data(TOY, data) is data


def frozen():
    return build_model().requires_grad_(False)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (nn.Flatten, "a parameter to train, one that has requires_grad=True, and this has none at all"),
        (frozen, "and this has 4 parameters, all of them frozen or empty"),
        (SimpleNamespace, "build_model of 'toy' must return a torch.nn.Module, not SimpleNamespace"),
    ],
)
def test_a_network_without_anything_to_train_is_refused(build, message):
    with pytest.raises(ProblemError, match=message):
        check_network(replace(TOY, build_model=build))


def test_one_parameter_to_train_is_enough():
    def build():
        model = frozen()
        model[-1].bias.requires_grad_(True)
        return model

    check_network(replace(TOY, build_model=build))


def test_a_training_on_too_few_data_does_not_pass_for_one():
    with pytest.raises(ProblemError, match="batch_size of 'toy' must be from 1 to 7"):
        train(TOY, Data(split(7), split(9)), epochs=1, seed=0, progress=silent, keep=lambda *_: None)


@pytest.mark.parametrize("which", ["train", "test"])
def test_a_loss_that_is_not_finite_is_seen_before_the_first_step(which):
    data = load_data()
    getattr(data, which).inputs[3] = float("nan")
    drawn = []

    def note(inputs, generator):
        drawn.append(inputs)
        return inputs

    with pytest.raises(ProblemError, match=f"the {which} loss of 'toy' must be finite before the first step, not nan"):
        train(TOY, replace(data, augment=note), epochs=1, seed=0, progress=silent, keep=lambda *_: None)
    assert not drawn
