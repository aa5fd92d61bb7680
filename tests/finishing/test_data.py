"""The same examples, whatever they come in."""

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from latephase.finishing import data as module
from latephase.finishing.data import examples

CPU = torch.device("cpu")
X, Y = torch.arange(24.0).reshape(12, 2), torch.arange(12)


class Rows(Dataset):
    def __len__(self):
        return 12

    def __getitem__(self, i):
        return X[i], Y[i]


class Augmented(Rows):
    def __getitem__(self, i):
        return X[i] + torch.randn(2), Y[i]


class Stream(IterableDataset):
    def __iter__(self):
        return iter(zip(X, Y, strict=True))


def batches(size=5):
    return [(X[i : i + size], Y[i : i + size]) for i in range(0, 12, size)]


FORMS = {
    "tensors": lambda: (X, Y),
    "data set": lambda: TensorDataset(X, Y),
    "own data set": Rows,
    "loader": lambda: DataLoader(Rows(), batch_size=5),
    "shuffling loader": lambda: DataLoader(Rows(), batch_size=5, shuffle=True),
    "stream": lambda: DataLoader(Stream(), batch_size=5),
    "list of batches": batches,
    "generator": lambda: iter(batches()),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms(form):
    found = examples("train_data", FORMS[form](), CPU)
    assert torch.equal(found.split.inputs, X)
    assert torch.equal(found.split.targets, Y)
    assert found.remark == ""
    expected = None if form in ("tensors", "data set", "own data set") else 5
    assert found.batch_size == expected


def test_structures_of_tensors():
    found = examples("train_data", ({"a": X, "b": [Y]}, Y), CPU)
    taken = found.split.take(slice(2, 4))
    assert torch.equal(taken.inputs["a"], X[2:4])
    assert torch.equal(taken.inputs["b"][0], Y[2:4])


def test_augmented_examples_are_read_afresh():
    found = examples("train_data", Augmented(), CPU)
    assert "other examples at every look" in found.remark
    one, other = (found.split.take(torch.tensor([3, 1])) for _ in range(2))
    assert not torch.equal(one.inputs, other.inputs)
    assert one.targets.tolist() == other.targets.tolist() == [3, 1]


def test_what_does_not_fit_is_read_as_it_is_needed(monkeypatch):
    monkeypatch.setattr(module, "MOST_BYTES", 60)
    found = examples("train_data", Rows(), CPU)
    assert "too large to be kept" in found.remark
    assert torch.equal(found.split.take(slice(0, 12)).inputs, X)
    stream = examples("valid_data", iter(batches()), CPU)
    assert len(stream.split) == 5
    assert stream.remark == "the first 5 examples of valid_data were read and kept"


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (3, TypeError, "train_data must be a pair of tensors, a data set of pairs"),
        ("mnist", TypeError, "train_data must be"),
        (X, TypeError, "train_data must be"),
        ({"x": X}, TypeError, "train_data must be"),
        ((X, Y[:3]), ValueError, r"common first dimension, not \[3, 12\]"),
        ((X[:0], Y[:0]), ValueError, "at least one example"),
        ([], ValueError, "gave no batch"),
        ([X], TypeError, r"must give pairs \(inputs, targets\)"),
        ([(X, Y, Y)], TypeError, "give finish a closure"),
        (TensorDataset(X), TypeError, "pairs"),
        (TensorDataset(X[:0], Y[:0]), ValueError, "at least one example"),
    ],
)
def test_what_gives_no_examples_is_refused(given, error, message):
    with pytest.raises(error, match=message):
        examples("train_data", given, CPU)
