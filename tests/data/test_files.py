"""Data in files: every layout is read, and what is wrong is named by its file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from codedinv.data import load_data, load_split, write_idx

RANDOM = np.random.default_rng(0)


def image_folder(
    root: Path, splits: tuple[str, ...] = ("train", "test"), mode: str = "RGB"
) -> Path:
    """Three images of each of two classes in every split: reds and blues."""
    for split in splits:
        for name, colour in (("blue", (0, 0, 255)), ("red", (255, 0, 0))):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(3):
                Image.new("RGB", (9, 8), colour).convert(mode).save(folder / f"{number}.png")
    return root


def test_a_folder_of_images_by_class(tmp_path: Path) -> None:
    train, test = load_data(image_folder(tmp_path))
    for part in (train, test):
        assert part.queries().shape == (6, 3, 8, 9)
        assert part.labels.tolist() == [0, 0, 0, 1, 1, 1]
        assert part.class_names == ("blue", "red")
    assert train.queries()[0, :, 0, 0].tolist() == [0, 0, 1]


def test_grey_images_stay_grey_and_val_may_be_the_test_set(tmp_path: Path) -> None:
    _, test = load_data(image_folder(tmp_path, ("train", "val"), "L"))
    assert test.queries().shape == (6, 1, 8, 9)


def test_an_image_of_another_size_is_named_with_both_sizes(tmp_path: Path) -> None:
    image_folder(tmp_path)
    Image.new("RGB", (30, 20)).save(tmp_path / "train" / "red" / "9.png")
    with pytest.raises(ValueError, match=r"red/9.png: expected 9x8 pixels, as .*, got 30x20"):
        load_split(tmp_path, "train")


def test_a_file_that_is_no_image_is_named(tmp_path: Path) -> None:
    image_folder(tmp_path)
    (tmp_path / "train" / "red" / "x.png").write_text("no image")
    with pytest.raises(ValueError, match=r"red/x.png: expected an image"):
        load_split(tmp_path, "train")


def test_a_class_of_one_split_keeps_its_number_in_the_other(tmp_path: Path) -> None:
    image_folder(tmp_path)
    (tmp_path / "train" / "amber").mkdir()
    Image.new("RGB", (9, 8)).save(tmp_path / "train" / "amber" / "0.png")
    assert load_split(tmp_path, "test").labels.tolist() == [1, 1, 1, 2, 2, 2]


def test_one_npz_file_with_both_parts(tmp_path: Path) -> None:
    x, y = RANDOM.random((4, 7), dtype=np.float32), np.array([0, 1, 0, 1])
    np.savez(tmp_path / "all.npz", x_train=x, y_train=y, x_test=x[:2], y_test=y[:2])
    train, test = load_data(tmp_path / "all.npz")
    np.testing.assert_array_equal(train.queries(), x)
    assert len(test) == 2


def test_a_folder_of_two_npz_files(tmp_path: Path) -> None:
    x, y = RANDOM.random((4, 2, 16), dtype=np.float32), np.array([0, 1, 0, 1])
    np.savez(tmp_path / "train.npz", x=x, y=y)
    np.savez(tmp_path / "test.npz", data=x, target=y)
    assert load_data(tmp_path)[1].queries().shape == (4, 2, 16)


@pytest.mark.parametrize(
    ("arrays", "complaint"),
    [
        ({"a": np.zeros(3)}, "expected arrays x_train, y_train, x_test and y_test, got a"),
        ({"x_train": np.array([{}])}, "expected an .npz file of plain arrays"),
    ],
)
def test_an_npz_file_of_something_else_is_named(
    tmp_path: Path, arrays: dict[str, np.ndarray], complaint: str
) -> None:
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(ValueError, match=rf"x.npz: {complaint}"):
        load_split(tmp_path / "x.npz", "train")


def test_a_file_of_another_format_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("1,2,3\n")
    with pytest.raises(ValueError, match=r"x.csv: expected an .npz file"):
        load_split(tmp_path / "x.csv", "train")


def test_idx_files_of_any_size(tmp_path: Path) -> None:
    for split in ("train", "t10k"):
        images = RANDOM.integers(0, 256, (4, 12, 10), dtype=np.uint8)
        write_idx(tmp_path / f"{split}-images-idx3-ubyte", images)
        write_idx(tmp_path / f"{split}-labels-idx1-ubyte", np.array([0, 1, 1, 0], np.uint8))
    assert load_data(tmp_path)[0].queries().shape == (4, 1, 12, 10)


def test_an_empty_folder_says_which_layouts_there_are_and_sells_no_other_data(
    tmp_path: Path,
) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        load_data(tmp_path)
    for layout in ("x_train", "train/CLASS/*.png", "train-images-idx3-ubyte"):
        assert layout in str(caught.value)
    assert "apt" not in str(caught.value)
    with pytest.raises(FileNotFoundError, match="no file or folder"):
        load_data(tmp_path / "missing")


def test_a_folder_without_classes_is_refused(tmp_path: Path) -> None:
    (tmp_path / "train" / "only").mkdir(parents=True)
    with pytest.raises(ValueError, match="a folder for each of two classes or more"):
        load_split(tmp_path, "train")
