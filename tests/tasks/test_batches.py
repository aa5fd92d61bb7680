from itertools import islice

import pytest
import torch

from latephase.study.data import Data, Split
from latephase.tasks import batches


def numbered(n, augment=None):
    """Data whose training targets are 0 to n - 1."""
    split = Split(torch.arange(n).double().reshape(n, 1, 1, 1).expand(n, 1, 2, 2), torch.arange(n))
    return Data(split, split.take(slice(0)), augment)


def noise(inputs, generator):
    """An augmentation that keeps the whole part of its inputs and leaves a trace of every use."""
    return inputs + torch.rand(inputs.shape, generator=generator, dtype=torch.float64)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_each_pass_is_over_different_examples_in_a_new_order():
    drawn = torch.stack([batch.targets for batch in islice(batches.endless(numbered(11), 3, generator()), 6)])
    first, second = drawn[:3].flatten().tolist(), drawn[3:].flatten().tolist()
    assert len(set(first)) == len(set(second)) == 9
    assert first != second


def test_the_generator_decides_what_is_drawn():
    def first(seed):
        batch = next(batches.endless(numbered(20, noise), 5, generator(seed)))
        return batch.targets.tolist(), batch.inputs.tolist()

    assert first(1) == first(1)
    assert first(1)[0] != first(2)[0]


def test_every_batch_is_augmented_with_the_generator_that_drew_it():
    drawn = generator()
    order = torch.randperm(6, generator=drawn)
    for batch, index in zip(batches.endless(numbered(6, noise), 3, generator()), order.split(3), strict=False):
        assert torch.equal(batch.targets, index)
        assert torch.equal(batch.inputs, noise(numbered(6).train.inputs[index], drawn))


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


def test_hessian_free_batches_are_augmented():
    stream = batches.hessian_free(numbered(30, noise), curvature=5, gradient=10, evaluation=8, generator=generator())
    for step in islice(stream, 3):
        for part in step:
            assert torch.equal(part.inputs.long()[:, 0, 0, 0], part.targets)
            assert bool((part.inputs != part.inputs.floor()).all())


@pytest.mark.parametrize("gradient", [20, 60, 100])
def test_the_evaluation_batch_may_be_the_gradient_batch_augmentation_included(gradient):
    stream = batches.hessian_free(
        numbered(100, noise), curvature=20, gradient=gradient, evaluation=10**6, same=True, generator=generator()
    )
    for curvature, gradient_only, evaluation in islice(stream, 3):
        assert (len(curvature), len(gradient_only)) == (20, gradient - 20)
        assert torch.equal(evaluation.targets, torch.cat([curvature.targets, gradient_only.targets]))
        assert torch.equal(evaluation.inputs, torch.cat([curvature.inputs, gradient_only.inputs]))
        assert len(set(evaluation.targets.tolist())) == gradient


@pytest.mark.parametrize("sizes", [(30, 20, 10), (20, 101, 10), (61, 61, 40), (0, 20, 10), (20, 20, 0)])
def test_hessian_free_batches_that_cannot_be_drawn_are_refused(sizes):
    with pytest.raises(ValueError, match="cannot be drawn from 100 examples"):
        drawn_hf(100, *sizes)


def test_the_same_batch_needs_enough_examples_too():
    stream = batches.hessian_free(
        numbered(100), curvature=20, gradient=101, evaluation=10, same=True, generator=generator()
    )
    with pytest.raises(ValueError, match=r"gradient \(101\) and evaluation \(the same\) cannot be drawn from 100"):
        next(stream)
