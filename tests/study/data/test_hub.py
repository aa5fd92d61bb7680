"""Reading the hub's image data sets, from files that are written here."""

import builtins
import shutil
import socket
import time

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from huggingface_hub import constants
from tests.study.data.fake_hub import fake_hub
from tests.study.data.hub_files import SOURCES, hub_table, png, random_images, write_copy

from latephase.study.data import DataError, cifar10, cifar100, fashion_mnist, hub, image_sets, svhn
from latephase.study.data.image_sets import CIFAR10, SVHN

LOADERS = {"cifar10": cifar10, "cifar100": cifar100, "svhn": svhn, "fashion_mnist": fashion_mnist}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    datasets.disable_progress_bars()


def assert_read(data, source, examples):
    """``data`` are the examples, normalised by the training images."""
    train = torch.tensor(examples["train"][0]).permute(0, 3, 1, 2).double() / 255
    mean, std = train.mean(dim=(0, 2, 3), keepdim=True), train.std(dim=(0, 2, 3), keepdim=True)
    for split, name in ((data.train, "train"), (data.test, "test")):
        pixels, labels = examples[name]
        expected = (torch.tensor(pixels).permute(0, 3, 1, 2).double() / 255 - mean) / std
        assert split.inputs.shape[1:] == source.shape
        torch.testing.assert_close(split.inputs, expected.float(), rtol=1e-5, atol=1e-5)
        assert split.targets.dtype == torch.int64
        assert split.targets.tolist() == labels.tolist()


@pytest.mark.parametrize("name", SOURCES)
def test_a_copy_of_the_repository_is_read(name, tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "_BATCH", 7)  # which divides neither split
    examples = write_copy(SOURCES[name], tmp_path)
    assert_read(LOADERS[name](tmp_path), SOURCES[name], examples)


def test_one_folder_may_hold_several_data_sets(tmp_path):
    examples = {name: write_copy(source, tmp_path / name) for name, source in SOURCES.items()}
    for name, source in SOURCES.items():
        assert_read(LOADERS[name](tmp_path), source, examples[name])


def test_files_written_by_the_library_itself_are_read(tmp_path):
    """They carry its types in their schema; the files lie in the folder itself, in two parts."""
    examples = {split: random_images(CIFAR10, n, n) for split, n in (("train", 30), ("test", 10))}
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(10)})
    for split, (pixels, labels) in examples.items():
        images = [{"bytes": png(p), "path": None} for p in pixels]
        table = datasets.Dataset.from_dict({"img": images, "label": labels}, features=features)
        for part in range(2):
            table.shard(2, part, contiguous=True).to_parquet(tmp_path / f"{split}-0000{part}-of-00002.parquet")
    assert_read(cifar10(tmp_path), CIFAR10, examples)


def test_other_configurations_in_the_repository_are_left_alone(tmp_path):
    examples = write_copy(SVHN, tmp_path)
    (tmp_path / "full_numbers").mkdir()
    pq.write_table(pa.table({"digits": [1]}), tmp_path / "full_numbers" / "train-00000-of-00001.parquet")
    extra = tmp_path / "cropped_digits" / "extra-00000-of-00001.parquet"
    pq.write_table(hub_table(SVHN, *random_images(SVHN, 3)), extra)
    assert_read(svhn(tmp_path), SVHN, examples)


def test_changed_files_are_read_anew(tmp_path):
    write_copy(CIFAR10, tmp_path)
    cifar10(tmp_path)
    shutil.rmtree(tmp_path / "plain_text")
    examples = write_copy(CIFAR10, tmp_path, n_train=30)
    assert_read(cifar10(tmp_path), CIFAR10, examples)


def test_a_folder_whose_name_looks_like_a_pattern(tmp_path):
    examples = write_copy(CIFAR10, tmp_path / "data [v1]*")
    assert_read(cifar10(tmp_path / "data [v1]*"), CIFAR10, examples)


@pytest.mark.parametrize(("name", "mirrored"), [("cifar10", True), ("cifar100", True), ("svhn", False)])
def test_training_images_in_colour_are_augmented(name, mirrored, tmp_path):
    write_copy(SOURCES[name], tmp_path)
    data = LOADERS[name](tmp_path)
    assert data.augment.flip is mirrored
    changed = data.augment(data.train.inputs, torch.Generator().manual_seed(0))
    assert changed.shape == data.train.inputs.shape
    assert not torch.equal(changed, data.train.inputs)


def test_fashion_mnist_is_not_augmented(tmp_path):
    write_copy(SOURCES["fashion_mnist"], tmp_path)
    assert fashion_mnist(tmp_path).augment is None


# ---------------------------------------------------------------------- what may be wrong


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match="nowhere: no such folder"):
        cifar10(tmp_path / "nowhere")


@pytest.mark.parametrize("name", SOURCES)
def test_an_empty_folder_is_named_with_what_was_expected(name, tmp_path):
    with pytest.raises(DataError, match=rf"{tmp_path.name}: no .*{SOURCES[name].repository}"):
        LOADERS[name](tmp_path)


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_missing_split_is_named(split, tmp_path):
    write_copy(CIFAR10, tmp_path)
    next(tmp_path.rglob(f"{split}-*")).unlink()
    with pytest.raises(DataError, match=f"split '{split}'; expected plain_text/{split}-00000-of-00001.parquet"):
        cifar10(tmp_path)


def rewrite(folder, change):
    """Replace the table of CIFAR-10's test split by what ``change`` makes of it."""
    write_copy(CIFAR10, folder)
    file = next(folder.rglob("test-*"))
    pq.write_table(change(pq.read_table(file)), file)


def with_column(name, values):
    return lambda table: table.set_column(table.column_names.index(name), name, values)


def with_image(content):
    def change(table):
        images = table["img"].to_pylist()
        images[3]["bytes"] = content
        return table.set_column(0, "img", pa.array(images, table["img"].type))

    return change


NOISE = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
UNREADABLE = "row 3: not an image that can be read, it may be truncated or corrupt"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table.drop(["img"]), "no column 'img', which uoft-cs/cifar10 has; there are: label"),
        (lambda table: table.rename_columns(["img", "y"]), "no column 'label', .* there are: img, y"),
        (lambda table: table.slice(0, 0), "cannot be read, it may be empty"),
        (with_column("img", [list(range(20))]), "column 'img' holds int64, expected images as struct"),
        (with_column("label", [[0] * 19 + [10]]), "label 10 in column 'label', expected whole numbers from 0 to 9"),
        (with_column("label", [[-1] * 20]), "label -1 in column 'label'"),
        (with_column("label", [[0.5] * 20]), "column 'label' holds double or gaps, expected whole numbers"),
        (with_column("label", [[None] + [0] * 19]), "column 'label' holds int64 or gaps, expected whole numbers"),
        (with_image(None), UNREADABLE),
        (with_image(b"<html>not found</html>"), UNREADABLE),
        (with_image(png(NOISE)[:-500]), UNREADABLE),
        (with_image(png(NOISE)[:300] + bytes(100) + png(NOISE)[400:]), UNREADABLE),
        (with_image(png(NOISE[:, :, :1])), "row 3: an image of 32x32 in mode L, expected 32x32 in mode RGB"),
        (with_image(png(NOISE[:28])), "row 3: an image of 28x32 in mode RGB, expected 32x32 in mode RGB"),
    ],
)
def test_a_table_that_is_not_as_expected(change, message, tmp_path):
    rewrite(tmp_path, change)
    with pytest.raises(DataError, match=f"plain_text/test-00000-of-00001.parquet.*{message}"):
        cifar10(tmp_path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[: len(content) // 2],
        lambda content: content[:1000] + bytes(20_000) + content[21_000:],
        lambda content: b"",
        lambda content: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    ],
)
def test_a_damaged_file_is_named(damage, tmp_path):
    write_copy(CIFAR10, tmp_path)
    file = next(tmp_path.rglob("train-*"))
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(
        DataError, match=r"train-00000-of-00001.parquet: cannot be read, it may be empty, truncated or corrupt"
    ):
        cifar10(tmp_path)


def test_images_that_cannot_be_normalised(tmp_path):
    place = tmp_path / "plain_text"
    place.mkdir()
    for split in ("train", "test"):
        table = hub_table(CIFAR10, np.zeros((4, 32, 32, 3), np.uint8), np.zeros(4, np.int64))
        pq.write_table(table, place / f"{split}.parquet")
    with pytest.raises(DataError, match="all pixels are the same"):
        cifar10(tmp_path)


def test_without_the_library_it_says_what_to_install(tmp_path, monkeypatch):
    write_copy(CIFAR10, tmp_path)
    real = builtins.__import__

    def no_datasets(name, *args, **kwargs):
        if name == "datasets":
            raise ImportError("No module named 'datasets'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", no_datasets)
    with pytest.raises(DataError, match=r"No module named 'datasets'.*pip install 'latephase\[study\]'"):
        cifar10(tmp_path)


# ---------------------------------------------------------------------- the hub itself


@pytest.fixture
def move_hub(tmp_path, monkeypatch):
    """A function that sets the hub's address; nothing is kept of earlier downloads."""

    def move(url):
        monkeypatch.setattr(constants, "ENDPOINT", url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "kept"))
    return move


@pytest.mark.parametrize("name", SOURCES)
def test_the_hub_is_asked_once_and_for_no_more_than_is_needed(name, tmp_path, move_hub, monkeypatch):
    monkeypatch.setattr(image_sets, "FASHION_MNIST_FOLDER", tmp_path / "missing")
    source = SOURCES[name]
    examples = write_copy(source, tmp_path / "repository")
    extra = tmp_path / "repository" / source.config / "extra-00000-of-00001.parquet"
    pq.write_table(hub_table(source, *random_images(source, 3)), extra)
    with fake_hub(tmp_path / "repository", source.repository) as (url, downloads):
        move_hub(url)
        assert_read(LOADERS[name](), source, examples)
        wanted = [f"{source.config}/{split}-00000-of-00001.parquet" for split in ("test", "train")]
        assert sorted(downloads) == wanted
    assert_read(LOADERS[name](), source, examples)  # there is no hub any more


def test_a_download_that_was_cut_short_is_completed(tmp_path, move_hub):
    examples = write_copy(CIFAR10, tmp_path / "repository")
    with fake_hub(tmp_path / "repository", CIFAR10.repository) as (url, downloads):
        move_hub(url)
        cifar10()
        downloads.clear()
        for file in (tmp_path / "kept").rglob("test-*"):
            file.resolve().unlink()
            file.unlink()
        assert_read(cifar10(), CIFAR10, examples)
        assert downloads == ["plain_text/test-00000-of-00001.parquet"]


def test_a_hub_out_of_reach_is_said_at_once(move_hub):
    move_hub("http://127.0.0.1:9")  # where nothing answers
    began = time.perf_counter()
    with pytest.raises(DataError, match=r"uoft-cs/cifar10: cannot be had from the hub .*--data-dir"):
        cifar10()
    assert time.perf_counter() - began < 10


def test_a_hub_that_never_answers_is_not_waited_for(move_hub, monkeypatch):
    monkeypatch.setattr(hub, "_PATIENCE", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        move_hub(f"http://127.0.0.1:{silent.getsockname()[1]}")
        began = time.perf_counter()
        with pytest.raises(DataError, match="uoft-cs/cifar10: cannot be had from the hub"):
            cifar10()
        assert time.perf_counter() - began < 10


def test_a_data_set_that_the_hub_does_not_have(tmp_path, move_hub):
    with fake_hub(tmp_path, "somebody/else") as (url, _):
        move_hub(url)
        with pytest.raises(DataError, match="uoft-cs/cifar10: cannot be had from the hub"):
            cifar10()
