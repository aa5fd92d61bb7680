"""Data sets as tensors: where they come from, and how training images are varied."""

from latephase.study.data.idx import read_idx
from latephase.study.data.image_sets import (
    FASHION_MNIST_FOLDER,
    cifar10,
    cifar100,
    digits,
    fashion_mnist,
    mnist_images,
    svhn,
)
from latephase.tasks.split import Augmentation, Data, DataError, Split

__all__ = [
    "FASHION_MNIST_FOLDER",
    "Augmentation",
    "Data",
    "DataError",
    "Split",
    "cifar10",
    "cifar100",
    "digits",
    "fashion_mnist",
    "mnist_images",
    "read_idx",
    "svhn",
]
