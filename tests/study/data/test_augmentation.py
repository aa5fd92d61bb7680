"""Each ingredient of the augmentation against a slow definition, image by image and pixel by pixel."""

import colorsys

import pytest
import torch

from latephase.study.data.augmentation import (
    BRIGHTNESS,
    ImageAugmentation,
    brighten,
    crop,
    mirror,
    saturate,
    stretch_contrast,
)


def random_images(n=6, size=32, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    return torch.rand(n, 3, size, size, generator=generator, dtype=torch.float64).to(dtype)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def augmentation(flip=True):
    mean = torch.tensor([0.4, 0.5, 0.6]).reshape(1, 3, 1, 1)
    std = torch.tensor([0.2, 0.25, 0.3]).reshape(1, 3, 1, 1)
    return ImageAugmentation(mean, std, flip)


def test_crop_takes_a_window_of_the_padded_image():
    images = random_images(n=25, size=5)
    top, left = (grid.flatten() for grid in torch.meshgrid(torch.arange(5), torch.arange(5), indexing="ij"))
    for image, cropped, t, q in zip(images, crop(images, top, left), top.tolist(), left.tolist(), strict=True):
        expected = torch.zeros_like(image)
        for row in range(5):
            for column in range(5):
                y, x = row + t - 2, column + q - 2
                if 0 <= y < 5 and 0 <= x < 5:
                    expected[:, row, column] = image[:, y, x]
        assert torch.equal(cropped, expected)


def test_mirror_exchanges_left_and_right_where_asked():
    images = random_images(n=2, size=4)
    mirrored = mirror(images, torch.tensor([True, False]))
    assert torch.equal(mirrored[0], images[0, :, :, [3, 2, 1, 0]])
    assert torch.equal(mirrored[1], images[1])


def test_brighten_adds():
    images = random_images(n=2, size=4)
    brighter = brighten(images, torch.tensor([0.1, -0.2], dtype=torch.float64))
    torch.testing.assert_close(brighter, torch.stack([images[0] + 0.1, images[1] - 0.2]))


@pytest.mark.parametrize("factor", [0.0, 0.5, 1.0, 1.5, 10.0])
def test_saturate_scales_the_saturation_of_hsv(factor):
    images = random_images(n=2, size=6)
    images[0, :, 0] = 0.3  # grey
    images[0, :, 1] = 0.0  # black
    images[0, 0, 2] = 0.0  # fully saturated
    images[0, :, 3] = 1.0  # white
    saturated = saturate(images, torch.full((2,), factor, dtype=torch.float64))
    for image, result in zip(images, saturated, strict=True):
        for y in range(6):
            for x in range(6):
                hue, saturation, value = colorsys.rgb_to_hsv(*image[:, y, x].tolist())
                expected = colorsys.hsv_to_rgb(hue, min(saturation * factor, 1.0), value)
                assert result[:, y, x].tolist() == pytest.approx(expected, abs=1e-12)


def test_contrast_is_about_the_mean_of_each_channel():
    images = random_images(n=2, size=4)
    result = stretch_contrast(images, torch.tensor([0.2, 1.8], dtype=torch.float64))
    for image, changed, factor in zip(images, result, (0.2, 1.8), strict=True):
        for channel, changed_channel in zip(image, changed, strict=True):
            mean = channel.sum() / 16
            torch.testing.assert_close(changed_channel, (channel - mean) * factor + mean)


def test_the_whole_is_its_parts_in_order():
    """With what the generator draws: places, mirror images, brightness, saturation, contrast."""
    augment, images = augmentation(), random_images(n=8)
    inputs = (images - augment.mean.double()) / augment.std.double()
    drawn = generator()
    top, left = torch.randint(5, (2, 8), generator=drawn)
    flip, delta, saturation, contrast = (torch.rand(8, generator=drawn, dtype=torch.float64) for _ in range(4))
    expected = mirror(crop(images, top, left), flip < 0.5)
    expected = brighten(expected, (2 * delta - 1) * BRIGHTNESS).clamp(0, 1)
    expected = stretch_contrast(saturate(expected, 0.5 + saturation), 0.2 + 1.6 * contrast).clamp(0, 1)
    expected = (expected - augment.mean.double()) / augment.std.double()
    torch.testing.assert_close(augment(inputs, generator()), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_comes_out_is_like_what_goes_in(dtype):
    augment = augmentation()
    inputs = random_images(n=50, dtype=dtype)
    before = inputs.clone()
    changed = augment(inputs, generator())
    assert torch.equal(inputs, before)
    assert (changed.shape, changed.dtype) == (inputs.shape, dtype)
    intensities = changed * augment.std.to(dtype) + augment.mean.to(dtype)
    assert -1e-6 < intensities.min() < 0.01
    assert 0.99 < intensities.max() < 1 + 1e-6


def test_the_generator_decides_and_nothing_else():
    inputs = random_images()
    first = augmentation()(inputs, generator(1))
    torch.rand(3)  # another stream
    assert torch.equal(augmentation()(inputs, generator(1)), first)
    assert not torch.equal(augmentation()(inputs, generator(2)), first)


def test_no_image_changes_with_the_rest_of_its_batch_but_each_has_its_own_numbers():
    same = random_images(n=1).expand(10, -1, -1, -1)
    changed = augmentation()(same, generator())
    assert len({tuple(image.flatten().tolist()) for image in changed}) == 10


def test_images_are_mirrored_only_where_that_is_asked_for():
    """A dark left half and a bright right half stay where they are, whatever else changes."""
    images = torch.full((40, 3, 32, 32), 0.2)
    images[..., 16:] = 0.8
    means = {}
    for flip in (False, True):
        changed = augmentation(flip)(images, generator())
        means[flip] = [bool(image[..., :14].mean() < image[..., -14:].mean()) for image in changed]
    assert all(means[False])
    assert 10 < sum(means[True]) < 30


def test_no_images_are_no_trouble():
    assert augmentation()(torch.zeros(0, 3, 32, 32), generator()).shape == (0, 3, 32, 32)
