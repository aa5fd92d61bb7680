"""Data for steps: disjoint, of the sizes asked for, the same for the same seed, resumable, from any map-style data."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset

import latephase
from latephase.drawing import StepData
from tests.comparison import property_test, seeds


class Numbers(Dataset[tuple[Tensor, int]]):
    """Pairs (x, index), one by one."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return torch.tensor([float(i)]), i


def pair(n: int) -> tuple[Tensor, Tensor]:
    return torch.arange(n, dtype=torch.float32).unsqueeze(1), torch.arange(n)


def examples(batch: list[Any]) -> list[int]:
    for inputs, targets in batch:
        assert torch.equal(inputs.squeeze(1), targets.float())
    return torch.cat([targets for _, targets in batch]).tolist() if batch else []


def same(one: StepData, other: StepData) -> bool:
    return all(examples(a) == examples(b) for a, b in zip(one, other, strict=True))


@property_test
@given(seeds, st.data())
def test_sizes_and_what_is_disjoint(seed: int, data: st.DataObject):
    n = data.draw(st.integers(3, 40))
    evaluation = data.draw(st.integers(1, n - 1))
    gradient = data.draw(st.integers(1, n - evaluation))
    curvature = data.draw(st.integers(1, gradient))
    drawing = latephase.batches(
        pair(n), gradient=gradient, curvature=curvature, evaluation=evaluation, micro_batch=7, seed=seed
    )
    for _ in range(3):
        drawn = next(drawing)
        judge, model, curved = (examples(batch) for batch in drawn)
        assert (len(judge), len(model), len(curved)) == (evaluation, gradient, curvature)
        assert len(set(judge) | set(model)) == evaluation + gradient
        assert model[:curvature] == curved
        assert all(a is b for a, b in zip(drawn.grad_datalist, drawn.mvp_datalist, strict=False))
        assert all(len(targets) <= 7 for batch in drawn for _, targets in list[Any](batch))


def test_by_default_all_data_are_every_batch() -> None:
    judge, model, curved = next(latephase.batches(pair(10)))
    assert judge is model
    assert sorted(examples(model)) == sorted(examples(curved)) == list(range(10))
    assert len(examples(next(latephase.batches(pair(10), evaluation=3)).grad_datalist)) == 7


def test_each_step_is_another_draw_and_each_seed_too() -> None:
    drawing, again, other = (latephase.batches(pair(50), gradient=20, evaluation=20, seed=s) for s in (3, 3, 4))
    first, second = next(drawing), next(drawing)
    assert same(first, next(again))
    assert not same(first, second)
    assert not same(first, next(other))


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # PyTorch, where there is one core
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("dataset", [pair(30), Numbers(30)], ids=["tensors", "dataset"])
def test_a_resumed_run_draws_what_the_undisturbed_one_does(dataset: Any, workers: int) -> None:
    sizes = {"gradient": 12, "curvature": 5, "evaluation": 8, "micro_batch": 4}
    straight = latephase.batches(dataset, **sizes)
    expected = [next(straight) for _ in range(6)]
    drawing = latephase.batches(dataset, **sizes, num_workers=workers)
    for _, step in zip(range(3), drawing, strict=False):
        last = step
    assert same(last, expected[2])
    resumed = latephase.batches(dataset, **sizes, num_workers=workers)
    next(resumed)
    resumed.load_state_dict(drawing.state_dict())
    assert all(same(next(resumed), step) for step in expected[3:])


def test_a_step_takes_it_as_it_is() -> None:
    x = torch.linspace(-1.0, 1.0, 64).unsqueeze(1)
    model = nn.Linear(1, 1)
    opt = latephase.HessianFree(model.parameters(), solver="auto")
    data = latephase.batches((x, 3.0 * x + 1.0), micro_batch=16)
    for _ in range(3):
        loss = opt.acc_step(model, nn.functional.mse_loss, *next(data), micro_batches_in_memory=4)
    assert loss < 1e-6


class Endless(IterableDataset[int]):
    def __iter__(self) -> Any:
        return iter(range(3))


@pytest.mark.parametrize(
    ("dataset", "sizes", "error", "words"),
    [
        (
            pair(10),
            {"gradient": 8, "evaluation": 3},
            ValueError,
            r"gradient \(8\) and evaluation \(3\)",
        ),
        (pair(10), {"gradient": 11}, ValueError, "more than 10 examples"),
        (pair(10), {"evaluation": 10}, ValueError, "more than 10 examples"),
        (pair(10), {"gradient": 4, "curvature": 5}, ValueError, r"curvature \(5\) must be ≤ gradient \(4\)"),
        (pair(10), {"gradient": 0}, ValueError, "gradient must be ≥ 1"),
        (pair(10), {"gradient": 2.5}, TypeError, "gradient must be an integer"),
        (pair(10), {"seed": -1}, ValueError, "seed must be ≥ 0"),
        ((torch.ones(3), torch.ones(4)), {}, ValueError, r"lengths \[3, 4\]"),
        (Endless(), {}, TypeError, "not Endless"),
    ],
)
def test_what_it_refuses(dataset: Any, sizes: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        latephase.batches(dataset, **sizes)


def test_a_state_of_something_else_is_refused() -> None:
    drawing = latephase.batches(pair(10))
    with pytest.raises(ValueError, match="'drawn'"):
        drawing.load_state_dict({"epoch": 3})
