"""Fashion-MNIST and MNIST in the IDX format, and the bundled test images.

Nothing is downloaded here. A missing file is an error that says which names were looked for, in
which folders, and how to get them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from codedinv.data.idx import read_idx

Split = Literal["train", "test"]
Images = NDArray[np.uint8]
Labels = NDArray[np.int64]

FASHION_MNIST_CLASSES = (
    "T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot",
)  # fmt: skip

_PREFIX = {"train": "train", "test": "t10k"}
_DEBIAN_FOLDERS = {"fashion-mnist": Path("/usr/share/datasets/fashion-mnist"), "mnist": None}
_TORCHVISION_NAME = {"fashion-mnist": "FashionMNIST", "mnist": "MNIST"}
_HOW_TO_GET = {
    "fashion-mnist": (
        "on Debian and Ubuntu: apt install dataset-fashion-mnist; elsewhere: download the four "
        "*-ubyte.gz files of https://github.com/zalandoresearch/fashion-mnist into one folder"
    ),
    "mnist": "download the four MNIST *-ubyte.gz files into one folder",
}
_TEST_IMAGES = Path(__file__).parents[1] / "bundles" / "test_images.npz"


def load_fashion_mnist(split: Split, folder: str | Path | None = None) -> tuple[Images, Labels]:
    """Fashion-MNIST's images and labels.

    Args:
        split: "train" (60,000) or "test" (10,000).
        folder: where the IDX files lie, gzipped or not: directly, in `raw/`, or in torchvision's
            `FashionMNIST/raw/`. None looks where Debian's package dataset-fashion-mnist puts them.

    Returns:
        images uint8 [N, 28, 28] and labels int64 [N], from 0 to 9.

    Raises:
        FileNotFoundError: a file is missing; the message lists the places looked in.
        ValueError: `split` is neither name, or a file is damaged (the message names it).
    """
    return load_image_set("fashion-mnist", split, folder)


def load_mnist(split: Split, folder: str | Path | None = None) -> tuple[Images, Labels]:
    """MNIST's images and labels; arguments, results and errors as in `load_fashion_mnist`.

    Debian packages no MNIST, so without a `folder` this raises FileNotFoundError.
    """
    return load_image_set("mnist", split, folder)


def load_image_set(
    name: str, split: Split, folder: str | Path | None = None
) -> tuple[Images, Labels]:
    """The image set of that name, "fashion-mnist" or "mnist"; else as `load_fashion_mnist`."""
    if name not in _DEBIAN_FOLDERS:
        raise ValueError(f"name: expected one of {sorted(_DEBIAN_FOLDERS)}, got {name!r}")
    if split not in _PREFIX:
        raise ValueError(f"split: expected 'train' or 'test', got {split!r}")
    folders = _folders(name, folder)
    image_file, label_file = (
        _found(name, file, folders, folder is not None) for file in _file_names(split)
    )
    images, labels = read_idx(image_file), read_idx(label_file)
    if images.ndim != 3 or images.shape[1:] != (28, 28):
        raise ValueError(f"{image_file}: expected images [N, 28, 28], got {list(images.shape)}")
    if labels.shape != images.shape[:1]:
        raise ValueError(
            f"{label_file}: expected {len(images)} labels, one for each image of "
            f"{image_file.name}, got {list(labels.shape)}"
        )
    return images, labels.astype(np.int64)


def load_test_images() -> tuple[Images, Labels]:
    """The 1,000 Fashion-MNIST test images that come with the package.

    They are the first 100 of each class, in the test set's order (`indices` in the file), so that
    accuracy on them is close to, but not, the accuracy on the 10,000.

    Returns:
        images uint8 [1000, 28, 28] and labels int64 [1000].

    Raises:
        FileNotFoundError: the package was installed without its data files.
        ValueError: the file is damaged.
    """
    if not _TEST_IMAGES.is_file():
        raise FileNotFoundError(f"{_TEST_IMAGES} is missing: the package's data was not installed")
    with np.load(_TEST_IMAGES, allow_pickle=False) as arrays:
        images, labels = arrays["images"], arrays["labels"]
    if images.dtype != np.uint8 or images.shape[1:] != (28, 28) or len(images) != len(labels):
        raise ValueError(
            f"{_TEST_IMAGES}: expected uint8 images [N, 28, 28] and N labels, "
            f"got {images.dtype} {images.shape} and {labels.shape}"
        )
    return images, labels.astype(np.int64)


def is_fashion_mnist(test_images: Images) -> bool:
    """Is any of these test images [N, 28, 28] one of the bundled Fashion-MNIST test images?"""
    known = {image.tobytes() for image in load_test_images()[0]}
    return any(image.tobytes() in known for image in test_images)


def to_queries(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Images as a model takes them.

    Args:
        images: uint8 [N, H, W] (one grey channel) or [N, H, W, C].

    Returns:
        float32 [N, C, H, W] in [0, 1].

    Raises:
        TypeError: the images are not uint8, so that their range is not known.
        ValueError: another number of dimensions.
    """
    if images.dtype != np.uint8:
        raise TypeError(f"images: expected dtype uint8, got {images.dtype}")
    if images.ndim == 3:
        channels_first = images[:, None]
    elif images.ndim == 4:
        channels_first = images.transpose(0, 3, 1, 2)
    else:
        raise ValueError(f"images: expected [N, H, W] or [N, H, W, C], got shape {images.shape}")
    return np.ascontiguousarray(channels_first, dtype=np.float32) / np.float32(255)


def find_idx_files(folder: Path, split: Split) -> tuple[Path, Path] | None:
    """Image and label file in a folder, or in torchvision's layout below it; None: no such."""
    folders = [folder, *(f for name in _DEBIAN_FOLDERS for f in _folders(name, folder)[1:])]
    images, labels = (_find(file, folders) for file in _file_names(split))
    return None if images is None or labels is None else (images, labels)


def _file_names(split: Split) -> tuple[str, str]:
    return f"{_PREFIX[split]}-images-idx3-ubyte", f"{_PREFIX[split]}-labels-idx1-ubyte"


def _folders(data_set: str, folder: str | Path | None) -> list[Path]:
    if folder is None:
        installed = _DEBIAN_FOLDERS[data_set]
        return [] if installed is None else [installed]
    root = Path(folder).expanduser()
    return [root, root / "raw", root / _TORCHVISION_NAME[data_set] / "raw"]


def _find(name: str, folders: list[Path]) -> Path | None:
    # Some mirrors write `train-images.idx3-ubyte`: the same file with its dash as a dot.
    dotted = name.replace("-idx", ".idx")
    names = [name, f"{name}.gz", dotted, f"{dotted}.gz"]
    candidates = (folder / candidate for folder in folders for candidate in names)
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def _found(data_set: str, name: str, folders: list[Path], given: bool) -> Path:
    """The file; where it is missing, whoever gave a folder is not told to install another's."""
    found = _find(name, folders)
    if found is not None:
        return found
    looked_in = ", ".join(str(folder) for folder in folders) or "no folder (none was given)"
    missing = f"{data_set}: {name}[.gz] was not found in {looked_in}"
    if given:
        raise FileNotFoundError(f"{missing}; expected the four IDX files of a data set there")
    raise FileNotFoundError(
        f"{missing}. To get it: {_HOW_TO_GET[data_set]}; then give that folder (--data FOLDER, or "
        "folder=...)."
    )
