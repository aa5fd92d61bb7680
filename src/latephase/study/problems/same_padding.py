"""TensorFlow's "same" padding, which the DeepOBS benchmark uses."""

from math import ceil

from torch import Tensor, nn
from torch.nn.functional import conv2d, pad


class SameConv2d(nn.Conv2d):
    """A convolution whose output has `ceil(size / stride)` rows and columns.

    Where the zeros to add are odd in number, the odd one goes to the bottom and to the right; `nn.Conv2d` can only
    add as many on both sides.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Convolve `x`, shape (N, C, H, W)."""
        (top, bottom), (left, right) = (
            same_padding(*along) for along in zip(x.shape[-2:], self.kernel_size, self.stride, strict=True)
        )
        if (top, left) == (bottom, right):
            return conv2d(x, self.weight, self.bias, self.stride, (top, left))
        return conv2d(pad(x, (left, right, top, bottom)), self.weight, self.bias, self.stride)


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Return how much to add before and after `size` entries, for `ceil(size / stride)` positions of the kernel."""
    total = max((ceil(size / stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def halving_max_pool() -> nn.MaxPool2d:
    """Return maxima over 3×3 with stride 2 and "same" padding, for images of even height and width.

    There the padding is one row at the bottom and one column at the right, which maxima ignore. That is what windows
    may overhang by in ceiling mode.
    """
    return nn.MaxPool2d(3, stride=2, ceil_mode=True)
