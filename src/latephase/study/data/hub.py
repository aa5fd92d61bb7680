"""Image data sets of the Hugging Face hub: from the hub, or from a folder with the same parquet files."""

from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from glob import escape
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from latephase.tasks.split import DataError, Split

if TYPE_CHECKING:
    from datasets import Dataset
    from pyarrow import Table

_PATIENCE = 10.0  # seconds for the first answer of the hub
_BATCH = 1000  # images held in both forms, encoded and decoded
_MODES = {1: "L", 3: "RGB"}  # what Pillow calls bytes in that many channels


@dataclass(frozen=True)
class HubImages:
    """An image data set on the hub, and what its tables must be like.

    Attributes:
        repository: Its name there.
        config: The configuration, and the folder in the repository with its files.
        image: The column with the images.
        label: The column with the labels, from 0.
        classes: How many different labels there are.
        shape: Channels, height and width of every image.
    """

    repository: str
    config: str
    image: str
    label: str
    classes: int
    shape: tuple[int, int, int]


def read_images(source: HubImages, folder: Path | None) -> tuple[Split, Split]:
    """Return the training and the test examples, intensities in [0, 1].

    Args:
        source: The data set.
        folder: A copy of the hub's repository, or a folder with such copies under the repositories' short names
            (`cifar10`, …). None for the hub itself, which is asked only once: its files are kept.

    Raises:
        DataError: If the data cannot be had, or are not as described.
    """
    if folder is not None and not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    _check_libraries()
    folder = _download(source) if folder is None else folder
    return _read_split(source, folder, "train"), _read_split(source, folder, "test")


def places(source: HubImages, folder: Path) -> list[Path]:
    """Return the folders in which to look for the files of `source`, given a folder by the user."""
    roots = [folder, folder / source.repository.rpartition("/")[2]]
    return [place for root in roots for place in (root / source.config, root)]


def has_parquet_files(source: HubImages, folder: Path) -> bool:
    """Whether there are any."""
    return any(_files(source, folder, split) for split in ("train", "test"))


def _files(source: HubImages, folder: Path, split: str) -> list[Path]:
    names = (f"{split}-*.parquet", f"{split}.parquet", f"{split}/*.parquet")
    found = (sorted(path for name in names for path in place.glob(name)) for place in places(source, folder))
    return next(filter(None, found), [])


def _check_libraries() -> None:
    """All of them are imported where they are used: it takes seconds, and no other data set needs them."""
    try:
        import datasets  # noqa: F401
        import huggingface_hub  # noqa: F401
        import PIL  # noqa: F401
    except ImportError as error:
        raise DataError(
            f"this data set is read with the libraries datasets, huggingface_hub and pillow ({error}): "
            "install them with pip install 'latephase[study]'"
        ) from error


# ---------------------------------------------------------------------- from the hub to files


def _download(source: HubImages) -> Path:
    """Return the folder where the files are kept, having downloaded them if they are not there.

    Not by `datasets.load_dataset`: of SVHN it downloads the gigabyte of extra images, too, unless it is told the
    files, and then it does not find them again without the network.

    Raises:
        DataError: If they are not there and cannot be downloaded, with what to do without a network.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    fetch = partial(
        snapshot_download,
        source.repository,
        repo_type="dataset",
        allow_patterns=[f"{source.config}/{split}-*" for split in ("train", "test")],
    )
    with suppress(LocalEntryNotFoundError):
        kept = Path(fetch(local_files_only=True))
        if all(_files(source, kept, split) for split in ("train", "test")):
            return kept
    try:
        HfApi().dataset_info(source.repository, timeout=_PATIENCE)  # a download would try again for minutes
        return Path(fetch())
    except Exception as error:  # whatever the layers below say: network, cache, disk
        raise DataError(
            f"{source.repository}: cannot be had from the hub ({error}). Where there is no network, name a folder with "
            f"its files by --data-dir: hf download {source.repository} --repo-type dataset --local-dir FOLDER"
        ) from error


# ---------------------------------------------------------------------- from files to tables


def _read_split(source: HubImages, folder: Path, split: str) -> Split:
    files = _files(source, folder, split)
    if not files:
        raise DataError(
            f"{folder}: no parquet files of {source.repository}, split {split!r}; "
            f"expected {source.config}/{split}-00000-of-00001.parquet or the like, as in the hub's repository"
        )
    where = ", ".join(map(str, files))
    return _read_table(source, _load(files, where), where)


def _load(files: list[Path], where: str) -> "Dataset":
    from datasets import Dataset

    try:
        # Unlike `load_dataset`, this tells nobody that files on this machine are read.
        return Dataset.from_parquet([escape(str(file)) for file in files])
    except Exception as error:  # whatever the layers below say: Arrow, disk
        reason = error.__cause__ or error
        raise DataError(f"{where}: cannot be read, it may be empty, truncated or corrupt ({reason})") from error


# ---------------------------------------------------------------------- from tables to tensors


def _read_table(source: HubImages, table: "Dataset", where: str) -> Split:
    """Decode a split's images. Bounds memory: besides the tensors, the encoded images of one batch."""
    for column in (source.image, source.label):
        if column not in table.column_names:
            names = ", ".join(table.column_names)
            raise DataError(f"{where}: no column {column!r}, which {source.repository} has; there are: {names}")
    if len(table) == 0:
        raise DataError(f"{where}: no images, expected at least one")

    images = np.empty((len(table), *source.shape), np.uint8)
    labels = np.empty(len(table), np.int64)
    start = 0
    for batch in table.select_columns([source.image, source.label]).with_format("arrow").iter(_BATCH):
        rows = slice(start, start + len(batch))
        labels[rows] = _labels(source, batch, where)
        for row, encoded in enumerate(_encoded(source, batch, where), start):
            images[row] = _pixels(encoded, source.shape, f"{where}, row {row}")
        start = rows.stop
    return Split(torch.from_numpy(images).float().div_(255), torch.from_numpy(labels))


def _labels(source: HubImages, batch: "Table", where: str) -> NDArray[Any]:
    labels = batch[source.label].to_numpy()
    expected = f"expected whole numbers from 0 to {source.classes - 1}"
    if labels.dtype.kind not in "iu":  # with gaps, too, they are floating-point numbers
        raise DataError(f"{where}: column {source.label!r} holds {batch[source.label].type} or gaps, {expected}")
    wrong = labels[(labels < 0) | (labels >= source.classes)]
    if len(wrong):
        raise DataError(f"{where}: label {wrong[0]} in column {source.label!r}, {expected}")
    return labels


def _encoded(source: HubImages, batch: "Table", where: str) -> list[bytes | None]:
    column = batch[source.image].combine_chunks()
    try:
        return column.field("bytes").to_pylist()
    except (AttributeError, KeyError) as error:
        raise DataError(
            f"{where}: column {source.image!r} holds {column.type}, expected images as struct<bytes, path>"
        ) from error


def _pixels(encoded: bytes | None, shape: tuple[int, int, int], where: str) -> NDArray[Any]:
    """Return an image as [channels, height, width]."""
    from PIL import Image

    channels, height, width = shape
    try:
        with Image.open(BytesIO(encoded or b"")) as image:
            found = (image.mode, image.height, image.width)
            pixels = np.asarray(image) if found == (_MODES[channels], height, width) else None
    except Exception as error:  # Pillow's decoders raise many kinds
        raise DataError(f"{where}: not an image that can be read, it may be truncated or corrupt ({error})") from error
    if pixels is None:
        raise DataError(
            f"{where}: an image of {found[1]}x{found[2]} in mode {found[0]}, "
            f"expected {height}x{width} in mode {_MODES[channels]}"
        )
    return pixels.reshape(height, width, channels).transpose(2, 0, 1)
