import functools
import gzip
import struct

import pytest
import torch

from latephase.study.data import FASHION_MNIST_FOLDER, DataError, digits, fashion_mnist, read_idx

TRAIN_IMAGES, TRAIN_LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
TEST_IMAGES, TEST_LABELS = "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"


compressed = functools.partial(gzip.compress, mtime=0)  # the same in all processes that collect these tests


def idx(array):
    """The IDX file of a uint8 tensor, by struct."""
    header = struct.pack(">BBBB", 0, 0, 8, array.dim()) + struct.pack(f">{array.dim()}I", *array.shape)
    return header + bytes(array.flatten().tolist())


def write_folder(folder, n_train=6, n_test=3, side=4):
    generator = torch.Generator().manual_seed(0)
    arrays = {}
    for images, labels, n in ((TRAIN_IMAGES, TRAIN_LABELS, n_train), (TEST_IMAGES, TEST_LABELS, n_test)):
        arrays[images] = torch.randint(256, (n, side, side), dtype=torch.uint8, generator=generator)
        arrays[labels] = torch.randint(10, (n,), dtype=torch.uint8, generator=generator)
    for name, array in arrays.items():
        (folder / f"{name}.gz").write_bytes(compressed(idx(array)))
    return arrays


def test_fashion_mnist_is_read_and_normalised_by_the_training_images(tmp_path):
    arrays = write_folder(tmp_path)
    data = fashion_mnist(tmp_path)

    pixels = arrays[TRAIN_IMAGES].double() / 255
    for split, images, labels in (
        (data.train, TRAIN_IMAGES, TRAIN_LABELS),
        (data.test, TEST_IMAGES, TEST_LABELS),
    ):
        expected = (arrays[images].double() / 255 - pixels.mean()) / pixels.std()
        torch.testing.assert_close(split.inputs, expected.float().unsqueeze(1))
        assert split.targets.dtype == torch.int64
        assert split.targets.tolist() == arrays[labels].tolist()


def test_uncompressed_files_are_read_too(tmp_path):
    arrays = write_folder(tmp_path)
    compressed = fashion_mnist(tmp_path)
    for name, array in arrays.items():
        (tmp_path / f"{name}.gz").unlink()
        (tmp_path / name).write_bytes(idx(array))
    assert torch.equal(fashion_mnist(tmp_path).test.inputs, compressed.test.inputs)


def test_the_folder_may_be_one_of_several_data_sets(tmp_path):
    (tmp_path / "fashion_mnist").mkdir()
    arrays = write_folder(tmp_path / "fashion_mnist")
    assert fashion_mnist(tmp_path).test.targets.tolist() == arrays[TEST_LABELS].tolist()


@pytest.mark.parametrize("name", [TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS])
def test_a_missing_file_is_named(tmp_path, name):
    write_folder(tmp_path)
    (tmp_path / f"{name}.gz").unlink()
    with pytest.raises(DataError, match=rf"{name}.gz: no such file[\s\S]*--data-dir"):
        fashion_mnist(tmp_path)


LABELS = idx(torch.arange(6, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (compressed(LABELS)[:-12], "truncated or corrupt"),
        (b"<html>not found</html>", "truncated or corrupt"),
        (compressed(LABELS)[:12] + b"\xff" * 30, "truncated or corrupt"),
        (compressed(b""), "starts with nothing, expected 00000801"),
        (compressed(idx(torch.zeros(6, 1, dtype=torch.uint8))), "starts with 00000802, expected 00000801"),
        (compressed(LABELS[:6]), "truncated, 6 bytes where the header alone has 8"),
        (compressed(LABELS[:-1]), r"13 bytes, expected 14 for the shape \(6,\)"),
        (compressed(LABELS + b"\0"), r"15 bytes, expected 14 for the shape \(6,\)"),
        (compressed(idx(torch.arange(5, dtype=torch.uint8))), "5 labels for the 6 images of train-images"),
        (compressed(idx(torch.arange(5, 11, dtype=torch.uint8))), "label 10, expected labels from 0 to 9"),
    ],
)
def test_a_bad_file_is_named_with_what_was_expected(tmp_path, content, message):
    write_folder(tmp_path)
    (tmp_path / f"{TRAIN_LABELS}.gz").write_bytes(content)
    with pytest.raises(DataError, match=rf"{TRAIN_LABELS}.gz: .*{message}"):
        fashion_mnist(tmp_path)


def test_images_of_two_sizes_are_refused(tmp_path):
    write_folder(tmp_path)
    (tmp_path / f"{TEST_IMAGES}.gz").write_bytes(compressed(idx(torch.zeros(3, 5, 5, dtype=torch.uint8))))
    with pytest.raises(DataError, match=r"\(1, 4, 4\), test images \(1, 5, 5\)"):
        fashion_mnist(tmp_path)


def test_a_header_that_promises_more_than_memory_holds_is_refused(tmp_path):
    path = tmp_path / "huge"
    path.write_bytes(bytes([0, 0, 8, 3]) + b"\xff" * 12)
    with pytest.raises(DataError, match="16 bytes, expected"):
        read_idx(path, dimensions=3)


@pytest.mark.skipif(
    not FASHION_MNIST_FOLDER.is_dir(), reason="needs the files of Debian's package dataset-fashion-mnist"
)
def test_the_real_fashion_mnist():
    data = fashion_mnist()
    assert data.train.inputs.shape == (60_000, 1, 28, 28)
    assert data.test.inputs.shape == (10_000, 1, 28, 28)
    assert torch.bincount(data.train.targets).tolist() == [6000] * 10
    assert torch.bincount(data.test.targets).tolist() == [1000] * 10


def test_digits_are_split_without_overlap_and_evenly():
    data = digits()
    assert data.train.inputs.shape == (1297, 1, 8, 8)
    assert data.test.inputs.shape == (500, 1, 8, 8)
    images = torch.cat([data.train.inputs, data.test.inputs]).flatten(1)
    assert len(images.unique(dim=0)) == 1797
    share = torch.bincount(data.test.targets) / 500 - torch.bincount(data.train.targets) / 1297
    assert share.abs().max() < 0.002
    assert abs(data.train.inputs.mean()) < 1e-5
    assert abs(data.train.inputs.std() - 1) < 1e-5
    assert torch.equal(digits().test.inputs, data.test.inputs)


def test_a_split_takes_inputs_and_targets_alike():
    part = digits().train.take(torch.tensor([3, 5]))
    whole = digits().train
    assert len(part) == 2
    assert torch.equal(part.inputs[1], whole.inputs[5])
    assert part.targets.tolist() == [int(whole.targets[3]), int(whole.targets[5])]
