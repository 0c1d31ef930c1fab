"""Image sets: found in each layout, and loud about what is missing or damaged."""

import struct
from pathlib import Path

import numpy as np
import pytest

from codedinv import data


def write_set(
    folder: Path, compress: bool = False, split: str = "t10k", count: int = 5
) -> np.ndarray:
    folder.mkdir(parents=True, exist_ok=True)
    images = np.random.default_rng(7).integers(0, 256, (count, 28, 28), dtype=np.uint8)
    labels = (np.arange(count) % 10).astype(np.uint8)
    for name, array in (("images-idx3", images), ("labels-idx1", labels)):
        data.write_idx(folder / f"{split}-{name}-ubyte{'.gz' if compress else ''}", array)
    return images


@pytest.mark.parametrize("layout", [".", "raw", "FashionMNIST/raw"])
@pytest.mark.parametrize("compress", [False, True])
def test_a_folder_is_read_in_each_layout(tmp_path: Path, layout: str, compress: bool) -> None:
    written = write_set(tmp_path / layout, compress)
    images, labels = data.load_fashion_mnist("test", tmp_path)
    np.testing.assert_array_equal(images, written)
    assert images.dtype == np.uint8
    assert labels.dtype == np.int64
    assert labels.tolist() == [0, 1, 2, 3, 4]


def test_mnist_is_read_from_torchvisions_layout(tmp_path: Path) -> None:
    written = write_set(tmp_path / "MNIST/raw", split="train")
    np.testing.assert_array_equal(data.load_mnist("train", tmp_path)[0], written)


def test_a_missing_file_says_what_was_looked_for_and_where(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        data.load_fashion_mnist("train", tmp_path)
    message = str(caught.value)
    assert "train-images-idx3-ubyte" in message
    assert str(tmp_path / "FashionMNIST" / "raw") in message
    assert "apt" not in message, "who gave a folder of their own wants no other's data"


def test_who_gave_no_folder_is_told_how_to_get_the_data(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(data.image_sets._DEBIAN_FOLDERS, "fashion-mnist", tmp_path)
    with pytest.raises(FileNotFoundError, match="apt install dataset-fashion-mnist"):
        data.load_fashion_mnist("train")


def test_mnist_without_a_folder_asks_for_one() -> None:
    with pytest.raises(FileNotFoundError, match="--data FOLDER"):
        data.load_mnist("test")


def test_an_unknown_split_is_named() -> None:
    with pytest.raises(ValueError, match="'validation'"):
        data.load_fashion_mnist("validation")  # type: ignore[arg-type]


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    write_set(tmp_path)
    path = tmp_path / "t10k-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(
        ValueError, match=r"t10k-images-idx3-ubyte.*promises 3920 bytes.*holds 3919"
    ):
        data.load_fashion_mnist("test", tmp_path)


def test_a_truncated_gzip_file_is_named(tmp_path: Path) -> None:
    write_set(tmp_path, compress=True)
    path = tmp_path / "t10k-labels-idx1-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-6])
    with pytest.raises(ValueError, match=r"t10k-labels-idx1-ubyte\.gz: damaged gzip"):
        data.load_fashion_mnist("test", tmp_path)


@pytest.mark.parametrize("content", [b"", b"\x89PNG....", b"\0\0\x0d\x01\0\0\0\0"])
def test_a_file_of_another_format_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "foreign"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="expected an IDX file"):
        data.read_idx(path)


def test_images_and_labels_must_be_as_many(tmp_path: Path) -> None:
    write_set(tmp_path)
    data.write_idx(tmp_path / "t10k-labels-idx1-ubyte", np.zeros(4, np.uint8))
    with pytest.raises(ValueError, match="expected 5 labels"):
        data.load_fashion_mnist("test", tmp_path)


def test_queries_are_float32_channels_first_in_the_unit_interval() -> None:
    grey = np.array([[[0, 255]]], dtype=np.uint8)
    queries = data.to_queries(grey)
    assert queries.shape == (1, 1, 1, 2)
    assert queries.dtype == np.float32
    assert queries.ravel().tolist() == [0.0, 1.0]
    colour = np.zeros((2, 32, 30, 3), np.uint8)
    assert data.to_queries(colour).shape == (2, 3, 32, 30)


def test_the_idx_header_is_as_the_format_says(tmp_path: Path) -> None:
    array = np.arange(6, dtype=np.uint8).reshape(2, 3)
    data.write_idx(tmp_path / "idx", array)
    header = struct.pack(">BBBBII", 0, 0, 8, 2, 2, 3)
    assert (tmp_path / "idx").read_bytes() == header + bytes(range(6))
    np.testing.assert_array_equal(data.read_idx(tmp_path / "idx"), array)
    with pytest.raises(TypeError, match="int64"):
        data.write_idx(tmp_path / "idx", np.zeros(3, np.int64))  # type: ignore[arg-type]


def test_images_of_unknown_range_are_refused() -> None:
    with pytest.raises(TypeError, match="float64"):
        data.to_queries(np.zeros((1, 28, 28)))  # type: ignore[arg-type]


needs_debians_package = pytest.mark.skipif(
    not Path("/usr/share/datasets/fashion-mnist").is_dir(),
    reason="Debian's dataset-fashion-mnist is not installed",
)


@needs_debians_package
def test_debians_package_is_found_without_a_folder() -> None:
    images, labels = data.load_fashion_mnist("test")
    assert images.shape == (10_000, 28, 28)
    assert np.bincount(labels).tolist() == [1000] * 10


def test_the_bundled_test_images_hold_a_hundred_of_each_class() -> None:
    images, labels = data.load_test_images()
    assert images.shape == (1000, 28, 28)
    assert images.dtype == np.uint8
    assert np.bincount(labels).tolist() == [100] * 10


@needs_debians_package
def test_the_bundled_test_images_are_the_first_of_each_class_in_the_test_set() -> None:
    images, labels = data.load_fashion_mnist("test")
    first = np.sort(np.concatenate([np.flatnonzero(labels == c)[:100] for c in range(10)]))
    bundled_images, bundled_labels = data.load_test_images()
    np.testing.assert_array_equal(bundled_images, images[first])
    np.testing.assert_array_equal(bundled_labels, labels[first])
