from itertools import islice

import pytest
import torch

from latephase.study import batches
from latephase.study.data import Split


def numbered(n):
    """A split whose targets are 0 to n - 1."""
    return Split(torch.zeros(n, 1, 2, 2), torch.arange(n))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_each_pass_is_over_different_examples_in_a_new_order():
    drawn = torch.stack([batch.targets for batch in islice(batches.endless(numbered(11), 3, generator()), 6)])
    first, second = drawn[:3].flatten().tolist(), drawn[3:].flatten().tolist()
    assert len(set(first)) == len(set(second)) == 9
    assert first != second


def test_the_generator_decides_what_is_drawn():
    def first(seed):
        return next(batches.endless(numbered(20), 5, generator(seed))).targets.tolist()

    assert first(1) == first(1)
    assert first(1) != first(2)


@pytest.mark.parametrize("size", [0, 12])
def test_a_batch_that_cannot_be_drawn_is_refused(size):
    with pytest.raises(ValueError, match=f"a batch of {size} cannot be drawn from 11"):
        next(batches.endless(numbered(11), size, generator()))


def drawn_hf(n, curvature, gradient, evaluation, steps=5):
    stream = batches.hessian_free(
        numbered(n), curvature=curvature, gradient=gradient, evaluation=evaluation, generator=generator()
    )
    return [[set(part.targets.tolist()) for part in batch] for batch in islice(stream, steps)]


@pytest.mark.parametrize("gradient", [20, 60])
def test_hessian_free_batches_are_disjoint_where_the_data_suffice(gradient):
    for curvature, gradient_only, evaluation in drawn_hf(100, 20, gradient, 40):
        assert (len(curvature), len(gradient_only), len(evaluation)) == (20, gradient - 20, 40)
        assert not curvature & gradient_only
        assert not (curvature | gradient_only) & evaluation


def test_a_gradient_batch_as_large_as_the_data_is_all_of_them():
    for curvature, gradient_only, evaluation in drawn_hf(100, 20, 100, 40):
        assert curvature | gradient_only == set(range(100))
        assert len(evaluation) == 40
        assert not curvature & evaluation


def test_hessian_free_batches_are_drawn_afresh():
    first, second = drawn_hf(100, 20, 60, 40, steps=2)
    assert all(one != other for one, other in zip(first, second, strict=True))


@pytest.mark.parametrize("sizes", [(30, 20, 10), (20, 101, 10), (61, 61, 40)])
def test_hessian_free_batches_that_cannot_be_drawn_are_refused(sizes):
    with pytest.raises(ValueError, match="cannot be drawn from 100 examples"):
        drawn_hf(100, *sizes)
