"""TensorFlow's "same" padding, by its definition."""

import math

import pytest
import torch

from latephase.study.problems.same_padding import SameConv2d, halving_max_pool, same_padding


def windows(x, kernel, stride, value):
    """Cut `x`, shape (N, C, H, W), into TensorFlow's "same" windows: (N, C, kernel², rows, columns)."""
    n, c, height, width = x.shape
    rows, columns = -(-height // stride), -(-width // stride)
    above = max((rows - 1) * stride + kernel - height, 0) // 2
    left = max((columns - 1) * stride + kernel - width, 0) // 2
    cut = x.new_full((n, c, kernel * kernel, rows, columns), value)
    for r in range(rows):
        for q in range(columns):
            for i in range(kernel):
                for j in range(kernel):
                    y, z = r * stride - above + i, q * stride - left + j
                    if 0 <= y < height and 0 <= z < width:
                        cut[:, :, i * kernel + j, r, q] = x[:, :, y, z]
    return cut


@pytest.mark.parametrize("kernel", [1, 2, 3, 5])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("size", [(8, 8), (7, 10)])
def test_same_convolution(kernel, stride, size):
    torch.manual_seed(0)
    layer = SameConv2d(2, 3, kernel, stride=stride).double()
    x = torch.randn(2, 2, *size, dtype=torch.float64)
    weight = layer.weight.flatten(2)
    expected = torch.einsum("ncwrq,ocw->norq", windows(x, kernel, stride, 0.0), weight)
    torch.testing.assert_close(layer(x), expected + layer.bias[:, None, None])


@pytest.mark.parametrize("size", [6, 12, 28])
def test_halving_max_pool(size):
    x = torch.randn(2, 3, size, size)
    torch.testing.assert_close(halving_max_pool()(x), windows(x, 3, 2, -math.inf).amax(dim=2))


def test_odd_padding_goes_to_the_end():
    assert same_padding(32, 3, 2) == (0, 1)
    assert same_padding(32, 3, 1) == (1, 1)
    assert same_padding(32, 1, 2) == (0, 0)
