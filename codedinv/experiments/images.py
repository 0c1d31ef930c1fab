"""The test images of a model: those of the data set that it has learnt."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codedinv import data
from codedinv.model import CodedModel

BUNDLED_NOTE = (
    "the full test set is not installed: these numbers are of the 1,000 bundled test images "
    "(apt install dataset-fashion-mnist, or --data FOLDER, for all 10,000)"
)
_TITLES = {"fashion-mnist": "Fashion-MNIST", "mnist": "MNIST"}


@dataclass(frozen=True)
class TestImages:
    """A test set as a model takes it.

    Attributes:
        queries: float32 (N, *input).
        labels: int64 (N,).
        class_names: by label; "class 0", ... where the data set has no names.
        source: where they come from, in words.
        note: what a reader of numbers has to know about them; None: nothing.
    """

    __test__ = False  # no test, whatever pytest makes of the name

    queries: NDArray[np.float32]
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]
    source: str
    note: str | None = None


def load_test_images(model: CodedModel, folder: Path | None) -> TestImages:
    """The test set of the data set that the model has learnt.

    Args:
        model: see `load_images`; `classes` in its provenance are checked where training counted
            them.
        folder: of another test set (`--data`). None: the model's own; Fashion-MNIST, if it is not
            installed, is replaced by the 1,000 bundled images.

    Raises:
        FileNotFoundError: the data set is not there.
        ValueError: the model does not say what it has learnt, or the images do not fit its input
            shape or its classes.
    """
    note = None
    try:
        images, labels, source = load_images(model, "test", folder)
    except FileNotFoundError:
        if folder is not None or _provenance(model).get("data_set") != "fashion-mnist":
            raise
        images, labels = data.load_test_images()
        source, note = f"the {len(images):,} bundled Fashion-MNIST test images", BUNDLED_NOTE
    queries = data.to_queries(images)
    _check_fit(model, queries, labels, source)
    names = tuple(f"class {number}" for number in range(_outputs(model)))
    if data.is_fashion_mnist(images):
        names = data.FASHION_MNIST_CLASSES
    return TestImages(queries, labels, names, source, note)


def load_images(
    model: CodedModel, split: data.Split, folder: Path | None
) -> tuple[data.Images, data.Labels, str]:
    """Images and labels of the data set that the model has learnt, and what to call them.

    Args:
        model: its provenance names its `data_set`, and `data_folder` where that is the user's own.
        split: "train" or "test".
        folder: where other images lie; None: the model's own.

    Raises:
        FileNotFoundError: the data set is not there.
        ValueError: the model does not say what it has learnt.
    """
    provenance = _provenance(model)
    name = provenance.get("data_set")
    layout = name if name in _TITLES else "fashion-mnist"  # a folder's, where it is torchvision's
    where = folder or provenance.get("data_folder")
    if where is not None:
        if folder is None and not Path(where).is_dir():
            raise FileNotFoundError(
                f"--data: {model.name} has learnt the images in {where}, and there is no such "
                "folder here; give it, or one like it"
            )
        images, labels = data.load_image_set(layout, split, where)
        return images, labels, f"the {len(images):,} {split} images in {where}"
    if name not in _TITLES:
        known = "no data set" if name is None else f"the data set {name!r} and no folder of it"
        raise ValueError(
            f"--data: expected a folder, for {model.name} names {known} as what it has learnt"
        )
    images, labels = data.load_image_set(name, split)
    return images, labels, f"the {len(images):,} {_TITLES[name]} {split} images"


def learnt_data(name: str, folder: Path | None, classes: int) -> dict[str, Any]:
    """What the provenance of a model says of the data set that it has learnt.

    Args:
        name: of the data set, as its recipe says; that is "fashion-mnist" where it says nothing.
        folder: where its files lie, if the user gave one.
        classes: of the training images.

    Returns:
        `data_set`, `classes`, and `data_folder` where the data set is not the installed one.
    """
    about = {"data_set": name, "classes": classes}
    if folder is None:
        return about
    if data.is_fashion_mnist(data.load_image_set(name, "test", folder)[0]):
        return about | {"data_set": "fashion-mnist"}
    where = folder.expanduser().resolve()
    return about | {
        "data_set": where.name if name == "fashion-mnist" else name,
        "data_folder": str(where),
    }


def _provenance(model: CodedModel) -> dict[str, Any]:
    return dict(model.metadata.get("provenance") or {})


def _outputs(model: CodedModel) -> int:
    return next(iter(model.tasks.values()))


def _check_fit(
    model: CodedModel, queries: NDArray[np.float32], labels: NDArray[np.int64], source: str
) -> None:
    if queries.shape[1:] != model.input_shape:
        raise ValueError(
            f"--data: {model.name} takes queries of shape {model.input_shape}, "
            f"{source} are {queries.shape[1:]}"
        )
    classes = min(_outputs(model), _provenance(model).get("classes") or _outputs(model))
    if len(labels) and labels.max() >= classes:
        raise ValueError(
            f"--data: {model.name} knows {classes} classes, labels 0 to {classes - 1}; "
            f"{source} have labels up to {labels.max()}"
        )
