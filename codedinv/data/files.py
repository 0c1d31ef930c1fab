"""Data in files: .npz, folders of images by class, and IDX files, each in a training and a test
part."""

from __future__ import annotations

import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codedinv.data.examples import Examples, _checked
from codedinv.data.idx import read_idx
from codedinv.data.image_sets import Split, find_idx_files

_IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm")
_SPLIT_FOLDERS = {"train": ("train", "training"), "test": ("test", "val", "valid", "validation")}
_X_NAMES = ("x", "X", "queries", "images", "data")
_Y_NAMES = ("y", "labels", "target", "targets")
_LAYOUTS = (
    "an .npz file with x_train, y_train, x_test and y_test; a folder of train.npz and test.npz "
    "with x and y each; a folder of images train/CLASS/*.png and test/CLASS/*.png; or a folder of "
    "IDX files train-images-idx3-ubyte, train-labels-idx1-ubyte and the same with t10k-"
)


def load_data(path: str | Path) -> tuple[Examples, Examples]:
    """Training and test examples of a file or folder; layouts as in `load_split`."""
    return load_split(path, "train"), load_split(path, "test")


def load_split(path: str | Path, split: Split) -> Examples:
    """The training or the test examples of a file or folder.

    Args:
        path: an .npz file with `x_train`, `y_train`, `x_test`, `y_test`; a folder of `train.npz`
            and `test.npz` with `x` and `y` each; of images by class, `train/CLASS/NAME.png` and
            `test/CLASS/NAME.png` (or `val/`), all of one size; or of IDX files, gzipped or not,
            directly, in `raw/` or in torchvision's layout. Classes of image folders are numbered
            in the order of their names.
        split: "train" or "test".

    Raises:
        FileNotFoundError: nothing of the kind is there; the message says what was expected.
        ValueError: a file is damaged or does not fit the others; the message names it.
    """
    if split not in _SPLIT_FOLDERS:
        raise ValueError(f"split: expected 'train' or 'test', got {split!r}")
    path = Path(path).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"--data: no file or folder {path}; expected {_LAYOUTS}")
    return replace(_read_split(path, split), path=str(path.resolve()))


def _read_split(path: Path, split: Split) -> Examples:
    if path.is_file():
        return _npz_with_both(path, split)
    if (path / f"{split}.npz").is_file():
        return _npz_of_one(path / f"{split}.npz")
    for name in _SPLIT_FOLDERS[split]:
        if (path / name).is_dir():
            return _image_folder(path / name, _class_names(path))
    files = find_idx_files(path, split)
    if files is not None:
        images, labels = (read_idx(file) for file in files)
        return _checked(images, labels, f"{files[0].parent} ({split})")
    raise FileNotFoundError(f"--data: found no {split} examples in {path}; expected {_LAYOUTS}")


def _npz_with_both(path: Path, split: Split) -> Examples:
    arrays = _npz(path)
    names = (f"x_{split}", f"y_{split}")
    if not set(names) <= set(arrays):
        raise ValueError(
            f"{path}: expected arrays x_train, y_train, x_test and y_test, got "
            f"{', '.join(sorted(arrays)) or 'none'}"
        )
    return _checked(arrays[names[0]], arrays[names[1]], f"{path} ({split})")


def _npz_of_one(path: Path) -> Examples:
    arrays = _npz(path)
    found = [next((n for n in names if n in arrays), None) for names in (_X_NAMES, _Y_NAMES)]
    if found[0] is None or found[1] is None:
        raise ValueError(
            f"{path}: expected arrays x and y, got {', '.join(sorted(arrays)) or 'none'}"
        )
    return _checked(arrays[found[0]], arrays[found[1]], str(path))


def _npz(path: Path) -> dict[str, NDArray[Any]]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (ValueError, OSError, zipfile.BadZipFile, AttributeError) as error:
        raise ValueError(f"{path}: expected an .npz file of plain arrays ({error})") from error


def _class_names(path: Path) -> tuple[str, ...]:
    """Names of the folders of every split, so that a class means the same in each."""
    parts = [path / name for names in _SPLIT_FOLDERS.values() for name in names]
    folders = (f for part in parts if part.is_dir() for f in part.iterdir() if f.is_dir())
    return tuple(sorted({folder.name for folder in folders if not folder.name.startswith(".")}))


def _image_folder(folder: Path, classes: tuple[str, ...]) -> Examples:
    if len(classes) < 2:
        raise ValueError(
            f"{folder}: expected a folder for each of two classes or more, got {list(classes)}"
        )
    files = [
        (file, number)
        for number, name in enumerate(classes)
        for file in sorted((folder / name).glob("*"))
        if file.suffix.lower() in _IMAGE_SUFFIXES
    ]
    if not files:
        raise ValueError(f"{folder}: found no image ({', '.join(_IMAGE_SUFFIXES)}) in its folders")
    first = _read_image(files[0][0], None)
    images = np.empty((len(files), *first.shape), np.uint8)
    for row, (file, _) in enumerate(files):
        image = _read_image(file, "L" if first.ndim == 2 else "RGB")
        if image.shape != first.shape:
            raise ValueError(
                f"{file}: expected {first.shape[1]}x{first.shape[0]} pixels, as {files[0][0]} "
                f"has, got {image.shape[1]}x{image.shape[0]}; resize the images to one size first"
            )
        images[row] = image
    labels = np.array([number for _, number in files], np.int64)
    return replace(_checked(images, labels, str(folder)), class_names=classes)


def _read_image(path: Path, mode: str | None) -> NDArray[np.uint8]:
    """uint8 (H, W) or (H, W, 3); `mode` None: grey images stay grey, others become RGB."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ModuleNotFoundError as error:  # comes with matplotlib, but that is not ours to promise
        raise ValueError(f"{path}: reading images needs Pillow (pip install pillow)") from error
    try:
        with Image.open(path) as image:
            wanted = mode or ("L" if image.mode in ("1", "L", "I;16", "I", "F") else "RGB")
            return np.asarray(image.convert(wanted), dtype=np.uint8)
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"{path}: expected an image, got a file that is none ({error})") from error
