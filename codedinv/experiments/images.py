"""The test images of a model: those of the data set that it has learnt."""

from __future__ import annotations

from dataclasses import dataclass, replace
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
        model: see `load_examples`; `classes` in its provenance are checked where training counted
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
        examples = load_examples(model, "test", folder)
    except FileNotFoundError:
        if folder is not None or _provenance(model).get("data_set") != "fashion-mnist":
            raise
        bundled = data.load_test_images()
        source = f"the {len(bundled[0]):,} bundled Fashion-MNIST test images"
        examples, note = data.as_examples(bundled, source), BUNDLED_NOTE
    _check_fit(model, examples)
    names = examples.class_names or tuple(f"class {n}" for n in range(_outputs(model)))
    if _are_fashion_mnist(examples):
        names = data.FASHION_MNIST_CLASSES
    queries, labels, source = examples.queries(), examples.labels, examples.source
    return TestImages(queries, labels, names, source, note)


def load_examples(model: CodedModel, split: data.Split, folder: Path | None) -> data.Examples:
    """Examples of the data set that the model has learnt; their source says what to call them.

    Args:
        model: its provenance names its `data_set`, and `data_folder` where that is the user's own.
        split: "train" or "test".
        folder: where other data lie (see `codedinv.data.load_split`); None: the model's own.

    Raises:
        FileNotFoundError: the data set is not there.
        ValueError: the model does not say what it has learnt.
    """
    provenance = _provenance(model)
    name = provenance.get("data_set")
    where = folder or provenance.get("data_folder")
    if where is not None:
        if folder is None and not Path(where).exists():
            raise FileNotFoundError(
                f"--data: {model.name} has learnt the data in {where}, and there is no such "
                "folder here; give it, or one like it"
            )
        examples = data.load_split(where, split)
        return _called(examples, f"the {len(examples):,} {split} examples in {where}")
    if name not in _TITLES:
        known = "no data that it has learnt" if name is None else f"its data {name!r} and no place"
        raise ValueError(
            f"--data: expected a file or folder of examples, for the bundle of {model.name} names "
            f"{known}"
        )
    examples = data.as_examples(data.load_image_set(name, split))
    return _called(examples, f"the {len(examples):,} {_TITLES[name]} {split} images")


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
    if _are_fashion_mnist(data.load_split(folder, "test")):
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


def _called(examples: data.Examples, source: str) -> data.Examples:
    return replace(examples, source=source)


def _are_fashion_mnist(examples: data.Examples) -> bool:
    images = examples.inputs
    return images.dtype == np.uint8 and data.is_fashion_mnist(images[:, 0])


def _check_fit(model: CodedModel, examples: data.Examples) -> None:
    if examples.input_shape != model.input_shape:
        raise ValueError(
            f"--data: {model.name} takes queries of shape {model.input_shape}, "
            f"{examples.source} are {examples.input_shape}"
        )
    classes = min(_outputs(model), _provenance(model).get("classes") or _outputs(model))
    if examples.classes > classes:
        raise ValueError(
            f"--data: {model.name} knows {classes} classes, labels 0 to {classes - 1}; "
            f"{examples.source} have labels up to {examples.classes - 1}"
        )
