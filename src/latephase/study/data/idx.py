"""IDX files, the format of MNIST and of data sets made after it."""

import gzip
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from latephase.tasks.split import DataError, Split

_IMAGES, _LABELS = "images-idx3-ubyte", "labels-idx1-ubyte"


def has_idx_files(folder: Path) -> bool:
    """Whether `folder` has any of the four files."""
    return any(_path(folder, f"{prefix}-{kind}") for prefix in ("train", "t10k") for kind in (_IMAGES, _LABELS))


def read_idx_folder(folder: Path, classes: int) -> tuple[Split, Split]:
    """Return the training and the test examples of MNIST's four files, intensities in [0, 1].

    Args:
        folder: Where the files are, compressed (`.gz`) or not.
        classes: Labels must be below.

    Raises:
        DataError: If a file is missing, truncated or corrupt.
    """
    train, test = (_read_split(folder, prefix, classes) for prefix in ("train", "t10k"))
    if train.inputs.shape[1:] != test.inputs.shape[1:]:
        raise DataError(
            f"{folder}: training images have shape {tuple(train.inputs.shape[1:])}, "
            f"test images {tuple(test.inputs.shape[1:])}; expected the same shape"
        )
    return train, test


def read_idx(path: Path, dimensions: int) -> Tensor:
    """Return the unsigned bytes of an IDX file as a uint8 tensor.

    The format: two zero bytes, the type code (8 = unsigned byte), the number of dimensions, each dimension as a
    big-endian 32-bit integer, then the elements in C order.

    Args:
        path: The file; compressed when its name ends in `.gz`.
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


def _read_split(folder: Path, prefix: str, classes: int) -> Split:
    images_path = _find(folder, f"{prefix}-{_IMAGES}")
    labels_path = _find(folder, f"{prefix}-{_LABELS}")
    images, labels = read_idx(images_path, dimensions=3), read_idx(labels_path, dimensions=1)
    if len(images) != len(labels) or len(images) == 0:
        raise DataError(
            f"{labels_path}: {len(labels)} labels for the {len(images)} images of {images_path.name}; "
            "expected as many, and at least one"
        )
    if labels.max() >= classes:
        raise DataError(f"{labels_path}: label {int(labels.max())}, expected labels from 0 to {classes - 1}")
    return Split(images.float().unsqueeze(1) / 255, labels.long())


def _path(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / f"{name}.gz", folder / name) if path.is_file()), None)


def _find(folder: Path, name: str) -> Path:
    path = _path(folder, name)
    if path is None:
        raise DataError(
            f"{folder / name}.gz: no such file (nor {name} beside it), expected four IDX files, "
            "{train,t10k}-{images-idx3,labels-idx1}-ubyte.gz, in the folder given with --data-dir"
        )
    return path
