"""The image data sets, normalised: each channel has mean 0 and standard deviation 1 over the training images."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from latephase.study.data.augmentation import ImageAugmentation
from latephase.study.data.hub import HubImages, has_parquet_files, places, read_images
from latephase.study.data.idx import has_idx_files, read_idx_folder
from latephase.tasks.split import Augmentation, Data, DataError, Split

FASHION_MNIST_FOLDER = Path("/usr/share/datasets/fashion-mnist")  # Debian's package dataset-fashion-mnist

CIFAR10 = HubImages("uoft-cs/cifar10", "plain_text", image="img", label="label", classes=10, shape=(3, 32, 32))
CIFAR100 = HubImages("uoft-cs/cifar100", "cifar100", image="img", label="fine_label", classes=100, shape=(3, 32, 32))
SVHN = HubImages("ufldl-stanford/svhn", "cropped_digits", image="image", label="label", classes=10, shape=(3, 32, 32))
FASHION_MNIST = HubImages(
    "zalando-datasets/fashion_mnist", "fashion_mnist", image="image", label="label", classes=10, shape=(1, 28, 28)
)
MNIST = HubImages("ylecun/mnist", "mnist", image="image", label="label", classes=10, shape=(1, 28, 28))
_TITLES = {FASHION_MNIST.repository: "Fashion-MNIST", MNIST.repository: "MNIST"}


def digits() -> Data:
    """Return scikit-learn's bundled 8x8 digits: 1,297 real images to train on, 500 to test on.

    The data set has no official split; this one is stratified by class and always the same.
    """
    from sklearn.datasets import load_digits  # here, because it takes a second, which other data sets need not wait
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    inputs = torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8)
    targets = torch.tensor(labels, dtype=torch.int64)
    train, test = train_test_split(np.arange(len(labels)), test_size=500, stratify=labels, random_state=0)
    examples = Split(inputs, targets)
    return _normalised(examples.take(torch.tensor(train)), examples.take(torch.tensor(test)))


def cifar10(folder: Path | None = None) -> Data:
    """Return CIFAR-10: 50,000 images to train on, with augmentation, 10,000 to test on, 32x32 in colour, 10 classes.

    Args:
        folder: A copy of the hub's repository, see `hub.read_images`. By default the data come from the hub.

    Raises:
        DataError: If they cannot be had, or are not as described.
    """
    return _normalised(*read_images(CIFAR10, folder), partial(ImageAugmentation, flip=True))


def cifar100(folder: Path | None = None) -> Data:
    """Return CIFAR-100 with its 100 fine labels: 50,000 images to train on, with augmentation, 10,000 to test on.

    Args:
        folder: As for `cifar10`.

    Raises:
        DataError: As for `cifar10`.
    """
    return _normalised(*read_images(CIFAR100, folder), partial(ImageAugmentation, flip=True))


def svhn(folder: Path | None = None) -> Data:
    """Return SVHN's cropped digits: 73,257 images to train on, with augmentation, 26,032 to test on, 32x32 in colour.

    The images are not flipped: a mirrored digit is none. The 531,131 easier extra images are left out.

    Args:
        folder: As for `cifar10`.

    Raises:
        DataError: As for `cifar10`.
    """
    return _normalised(*read_images(SVHN, folder), partial(ImageAugmentation, flip=False))


def fashion_mnist(folder: Path | None = None) -> Data:
    """Return Fashion-MNIST: 60,000 images to train on, 10,000 to test on, 28x28 in grey, 10 classes.

    Args:
        folder: Where the four IDX files are, compressed (`.gz`) or not, or a copy of the hub's repository. By
            default where Debian's package `dataset-fashion-mnist` puts them; without it the data come from the hub.

    Raises:
        DataError: If they cannot be had, or are not as described.
    """
    if folder is None and FASHION_MNIST_FOLDER.is_dir():
        folder = FASHION_MNIST_FOLDER
    return _normalised(*_read_idx_or_hub(FASHION_MNIST, folder))


def mnist_images(folder: Path | None = None) -> Data:
    """Return MNIST's images as inputs and targets, [N, 784] in [0, 1]: 60,000 to train on, 10,000 to test on.

    Args:
        folder: Where the four IDX files are, compressed (`.gz`) or not, or a copy of the hub's repository. By default
            the data come from the hub.

    Raises:
        DataError: If they cannot be had, or are not as described.
    """
    train, test = (split.inputs.flatten(1) for split in _read_idx_or_hub(MNIST, folder))
    return Data(Split(train, train), Split(test, test))


def _read_idx_or_hub(source: HubImages, folder: Path | None) -> tuple[Split, Split]:
    """Return the training and the test examples, intensities in [0, 1], from what files there are."""
    if folder is not None:
        for place in places(source, folder):
            if has_idx_files(place):
                return read_idx_folder(place, source.classes)
        if not has_parquet_files(source, folder):
            debian = " (Debian's package dataset-fashion-mnist has them)" if source is FASHION_MNIST else ""
            raise DataError(
                f"{folder}: no {_TITLES[source.repository]} there, expected its four IDX files, "
                f"{{train,t10k}}-{{images-idx3,labels-idx1}}-ubyte.gz{debian}, "
                f"or the parquet files of {source.repository} on the hub"
            )
    return read_images(source, folder)


def _normalised(
    train: Split, test: Split, augmentation: Callable[[Tensor, Tensor], Augmentation] | None = None
) -> Data:
    """Shift and scale each channel, in place, by the mean and standard deviation of the training images.

    Args:
        train: Examples to train on.
        test: Examples to test on.
        augmentation: Makes the augmentation from mean and standard deviation.

    Returns:
        The same two splits, and the augmentation.

    Raises:
        DataError: If all training images have the same value throughout a channel.
    """
    mean = train.inputs.mean(dim=(0, 2, 3), keepdim=True)
    std = train.inputs.std(dim=(0, 2, 3), keepdim=True)
    if not bool((std > 0).all()):
        raise DataError("training images cannot be normalised: in one of the channels all pixels are the same")
    for split in (train, test):
        split.inputs.sub_(mean).div_(std)
    return Data(train, test, augmentation and augmentation(mean, std))
