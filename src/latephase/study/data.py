"""Images and labels as tensors: data sets that need no download."""

import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

FASHION_MNIST_FOLDER = Path("/usr/share/datasets/fashion-mnist")  # Debian's package dataset-fashion-mnist


class DataError(RuntimeError):
    """A data file is missing, truncated or not what its name promises. The message names the file."""


@dataclass(frozen=True)
class Split:
    """Examples: ``inputs`` of shape [N, C, H, W] (float32) and ``targets`` of shape [N] (int64)."""

    inputs: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.targets)

    def take(self, index: Tensor | slice) -> "Split":
        """Return the examples at ``index``."""
        return Split(self.inputs[index], self.targets[index])

    def to(self, device: torch.device) -> "Split":
        """Return the same examples on ``device``."""
        return Split(self.inputs.to(device), self.targets.to(device))


@dataclass(frozen=True)
class Data:
    """A data set's two splits."""

    train: Split
    test: Split

    def to(self, device: torch.device) -> "Data":
        """Return the same data on ``device``."""
        return Data(self.train.to(device), self.test.to(device))


def digits() -> Data:
    """Return scikit-learn's bundled 8x8 digits: 1,297 real images to train on, 500 to test on.

    The data set has no official split; this one is stratified by class and always the same.
    """
    images, labels = load_digits(return_X_y=True)
    inputs = torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8)
    targets = torch.tensor(labels, dtype=torch.int64)
    train, test = train_test_split(np.arange(len(labels)), test_size=500, stratify=labels, random_state=0)
    examples = Split(inputs, targets)
    return _normalised(examples.take(torch.tensor(train)), examples.take(torch.tensor(test)))


def fashion_mnist(folder: Path | None = None) -> Data:
    """Return Fashion-MNIST: 60,000 real images to train on, 10,000 to test on, 28x28.

    Args:
        folder: Where the four IDX files are, compressed (``.gz``) or not. By default where Debian's package
            ``dataset-fashion-mnist`` puts them.

    Raises:
        DataError: If a file is missing, truncated or corrupt.
    """
    folder = FASHION_MNIST_FOLDER if folder is None else folder
    train = _read_idx_split(folder, "train")
    test = _read_idx_split(folder, "t10k")
    if train.inputs.shape[1:] != test.inputs.shape[1:]:
        raise DataError(
            f"{folder}: training images have shape {tuple(train.inputs.shape[1:])}, "
            f"test images {tuple(test.inputs.shape[1:])}; expected the same shape"
        )
    return _normalised(train, test)


def read_idx(path: Path, dimensions: int) -> Tensor:
    """Return the unsigned bytes of an IDX file as a uint8 tensor.

    The format: two zero bytes, the type code (8 = unsigned byte), the number of dimensions, each dimension as a
    big-endian 32-bit integer, then the elements in C order.

    Args:
        path: The file; compressed when its name ends in ``.gz``.
        dimensions: How many dimensions the file must have.

    Raises:
        DataError: If the file cannot be read, or its header or length is not as described.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read, it may be truncated or corrupt ({error})") from error

    magic = bytes([0, 0, 8, dimensions])
    if content[:4] != magic:
        raise DataError(
            f"{path}: not an IDX file of unsigned bytes in {dimensions} dimensions "
            f"(starts with {content[:4].hex() or 'nothing'}, expected {magic.hex()})"
        )
    start = 4 + 4 * dimensions
    if len(content) < start:
        raise DataError(f"{path}: truncated, {len(content)} bytes where the header alone has {start}")
    shape = np.frombuffer(content, dtype=">u4", count=dimensions, offset=4).astype(np.int64)
    expected = start + int(shape.prod())
    if len(content) != expected:
        raise DataError(
            f"{path}: {len(content)} bytes, expected {expected} for the shape {tuple(shape.tolist())} in its header"
        )
    elements = np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape)
    return torch.from_numpy(elements.copy())


def _read_idx_split(folder: Path, prefix: str) -> Split:
    images_path = _find(folder, f"{prefix}-images-idx3-ubyte")
    labels_path = _find(folder, f"{prefix}-labels-idx1-ubyte")
    images, labels = read_idx(images_path, dimensions=3), read_idx(labels_path, dimensions=1)
    if len(images) != len(labels) or len(images) == 0:
        raise DataError(
            f"{labels_path}: {len(labels)} labels for the {len(images)} images of {images_path.name}; "
            "expected as many, and at least one"
        )
    if labels.max() > 9:
        raise DataError(f"{labels_path}: label {int(labels.max())}, expected labels from 0 to 9")
    return Split(images.float().unsqueeze(1) / 255, labels.long())


def _find(folder: Path, name: str) -> Path:
    for path in (folder / f"{name}.gz", folder / name):
        if path.is_file():
            return path
    raise DataError(
        f"{folder / name}.gz: no such file (nor {name} beside it). Fashion-MNIST is four IDX files, "
        "{train,t10k}-{images-idx3,labels-idx1}-ubyte.gz: install Debian's package dataset-fashion-mnist, "
        "or name the folder that holds them with --data-dir"
    )


def _normalised(train: Split, test: Split) -> Data:
    """Shift and scale each channel by the mean and standard deviation of the training images."""
    mean = train.inputs.mean(dim=(0, 2, 3), keepdim=True)
    std = train.inputs.std(dim=(0, 2, 3), keepdim=True)
    return Data(
        Split((train.inputs - mean) / std, train.targets),
        Split((test.inputs - mean) / std, test.targets),
    )
