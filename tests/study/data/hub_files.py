"""Small parquet files of the schemas that the hub's image data sets have."""

from io import BytesIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from latephase.study.data.image_sets import CIFAR10, CIFAR100, FASHION_MNIST, SVHN

SOURCES = {"cifar10": CIFAR10, "cifar100": CIFAR100, "svhn": SVHN, "fashion_mnist": FASHION_MNIST}


def random_images(source, n, seed=0):
    """Pixels [n, height, width, channels] and labels."""
    random = np.random.default_rng(seed)
    channels, height, width = source.shape
    pixels = random.integers(0, 256, (n, height, width, channels), dtype=np.uint8)
    return pixels, random.integers(0, source.classes, n)


def png(pixels):
    with BytesIO() as file:
        Image.fromarray(pixels.squeeze()).save(file, format="PNG")
        return file.getvalue()


def hub_table(source, pixels, labels):
    """A table as on the hub, whose column of images is a struct of the file's bytes and its name."""
    images = [{"bytes": png(p), "path": f"{i}.png"} for i, p in enumerate(pixels)]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    columns = {source.image: pa.array(images, kind), source.label: pa.array(labels, pa.int64())}
    if source is CIFAR100:
        columns["coarse_label"] = pa.array(np.zeros_like(labels))
    return pa.table(columns)


def write_copy(source, folder, n_train=40, n_test=20):
    """Write the parquet files of a copy of the hub's repository; return what is in them."""
    place = folder / source.config
    place.mkdir(parents=True)
    examples = {"train": random_images(source, n_train, 0), "test": random_images(source, n_test, 1)}
    for split, (pixels, labels) in examples.items():
        pq.write_table(hub_table(source, pixels, labels), place / f"{split}-00000-of-00001.parquet")
    return examples
