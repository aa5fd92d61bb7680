"""Random changes to training images: shifts, mirror images, brightness, saturation, contrast."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

PADDING = 2
BRIGHTNESS = 63 / 255
SATURATION = (0.5, 1.5)
CONTRAST = (0.2, 1.8)

_PIECE = 256  # images at a time, so that what is being changed stays in a processor's cache


@dataclass(frozen=True, eq=False)
class ImageAugmentation:
    """The augmentation of the DeepOBS benchmark (Schneider et al. 2019), each image by its own random numbers.

    The normalised images are brought back to intensities in [0, 1]. There each is padded with two black pixels on
    every side and cropped to its size at a random place; mirrored with probability ½; made brighter by a number from
    [-63/255, 63/255]; its saturation is scaled by a factor from [0.5, 1.5], its contrast by one from [0.2, 1.8], in
    that order and as TensorFlow's `tf.image` defines them. What leaves [0, 1] is cut off. Then it is normalised.
    (The benchmark's version for PyTorch has the same ranges, in torchvision's definitions and in random order.)

    All random numbers are drawn on the CPU, so that a run repeats on any device.

    Args:
        mean: What normalisation subtracted, [1, C, 1, 1].
        std: What it divided by.
        flip: Whether to mirror.
    """

    mean: Tensor
    std: Tensor
    flip: bool

    def __call__(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        """Return changed `inputs`, [N, C, H, W], with random numbers from `generator`."""
        return torch.cat([self._changed(piece, generator) for piece in inputs.split(_PIECE)])

    def _changed(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        mean, std = self.mean.to(inputs), self.std.to(inputs)
        (top, left), mirrored, brightness, saturation, contrast = self._drawn(inputs, generator)
        images = crop(inputs * std + mean, top, left)
        if self.flip:
            images = mirror(images, mirrored < 0.5)
        images = brighten(images, brightness).clamp(0, 1)
        images = saturate(images, saturation)
        images = stretch_contrast(images, contrast).clamp(0, 1)
        return (images - mean) / std

    def _drawn(self, inputs: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return the random numbers of each image, brought to its device in one go: there each transfer has a price."""

        def uniform(low: float, high: float) -> Tensor:
            return low + (high - low) * torch.rand(len(inputs), generator=generator, dtype=torch.float64)

        places = torch.randint(2 * PADDING + 1, (2, len(inputs)), generator=generator)
        mirrored = uniform(0, 1) if self.flip else places[0].double()
        others = (uniform(-BRIGHTNESS, BRIGHTNESS), uniform(*SATURATION), uniform(*CONTRAST))
        drawn = torch.stack([*places.double(), mirrored, *others]).to(inputs.device, non_blocking=True)
        mirrored, brightness, saturation, contrast = drawn[2:].to(inputs)
        return drawn[:2].long(), mirrored, brightness, saturation, contrast


def crop(images: Tensor, top: Tensor, left: Tensor) -> Tensor:
    """Pad with zeros, then cut from each image a window of its old size, at its row `top` and its column `left`."""
    height, width = images.shape[-2:]
    padded = pad(images, [PADDING] * 4)
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # a view: [N, C, tops, lefts, H, W]
    return windows[torch.arange(len(images), device=images.device), :, top, left]


def mirror(images: Tensor, which: Tensor) -> Tensor:
    """Exchange left and right in the images where `which` is true."""
    return torch.where(which[:, None, None, None], images.flip(-1), images)


def brighten(images: Tensor, delta: Tensor) -> Tensor:
    """Add each image's `delta` to its intensities."""
    return images + delta[:, None, None, None]


def saturate(images: Tensor, factor: Tensor) -> Tensor:
    """Return the images with the saturation of HSV scaled by each one's `factor`, at most to 1.

    Intensities are in [0, 1].

    Of hue, saturation S and value V, the colour V·(1 - S·k) depends by k on the hue alone. So it need not be computed:
    S·factor for S means a distance to V that is `factor` times as large, as far as S ≤ 1 allows.
    """
    value, lowest = images.amax(dim=1, keepdim=True), images.amin(dim=1, keepdim=True)
    chroma = value - lowest
    most = torch.where(chroma > 0, value / chroma, 1)  # 1 / S; without chroma there is no distance to scale
    return value - (value - images) * torch.minimum(factor[:, None, None, None], most)


def stretch_contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Scale by each image's `factor` how far intensities are from their mean over the image's channel."""
    mean = images.mean(dim=(2, 3), keepdim=True)
    return mean + (images - mean) * factor[:, None, None, None]
