"""Sums of scaled vectors, with a number or a vector as the factor."""

import torch

from latephase.vectors import plus_scaled


def test_the_factor_is_a_number_or_each_entrys_own() -> None:
    x, v = torch.tensor([1.0, 2.0]), torch.tensor([10.0, 20.0])
    assert plus_scaled(x, 0.5, v).tolist() == [6.0, 12.0]
    assert plus_scaled(x, torch.tensor([0.5, 2.0]), v).tolist() == [6.0, 42.0]
    assert (x.tolist(), v.tolist()) == ([1.0, 2.0], [10.0, 20.0])
