"""A model is shown and evaluated on the data set that it has learnt."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from codedinv import data
from codedinv.experiments.images import learnt_data, load_examples, load_test_images


def model_of(outputs: int = 10, shape: tuple[int, ...] = (1, 28, 28), **provenance: Any) -> Any:
    return SimpleNamespace(
        name="mine",
        tasks={"label": outputs},
        input_shape=shape,
        metadata={"provenance": provenance} if provenance else {},
    )


@pytest.fixture(scope="module")
def bars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image set of the user's own: three classes of noise."""
    folder = tmp_path_factory.mktemp("bars")
    random = np.random.default_rng(0)
    for split, count in (("train", 30), ("t10k", 12)):
        images = random.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        data.write_idx(folder / f"{split}-images-idx3-ubyte", images)
        data.write_idx(folder / f"{split}-labels-idx1-ubyte", np.arange(count, dtype=np.uint8) % 3)
    return folder


def test_a_models_own_folder_is_used_without_being_asked_for(bars: Path) -> None:
    model = model_of(data_set="bars", data_folder=str(bars), classes=3)
    found = load_test_images(model, None)
    assert found.queries.shape == (12, 1, 28, 28)
    assert found.class_names[:3] == ("class 0", "class 1", "class 2")
    assert str(bars) in found.source
    assert len(load_examples(model, "train", None)) == 30


def test_a_folder_that_is_given_goes_before_the_models_own(bars: Path) -> None:
    model = model_of(data_set="gone", data_folder="/no/such/folder", classes=3)
    assert len(load_test_images(model, bars).queries) == 12
    with pytest.raises(FileNotFoundError, match="--data: mine has learnt the data in /no/such"):
        load_test_images(model, None)


def test_a_model_of_fashion_mnist_has_its_names(idx_folder: Path) -> None:
    found = load_test_images(model_of(data_set="fashion-mnist"), idx_folder)
    assert found.class_names == data.FASHION_MNIST_CLASSES


def test_images_of_too_many_classes_are_refused_with_both_numbers(idx_folder: Path) -> None:
    with pytest.raises(ValueError, match=r"knows 3 classes, labels 0 to 2; .* labels up to 9"):
        load_test_images(model_of(data_set="bars", classes=3), idx_folder)
    with pytest.raises(ValueError, match="knows 5 classes"):
        load_test_images(model_of(outputs=5, data_set="fashion-mnist"), idx_folder)


def test_images_of_another_shape_are_refused_with_both_shapes(bars: Path) -> None:
    with pytest.raises(ValueError, match=r"shape \(3, 32, 32\), .* are \(1, 28, 28\)"):
        load_test_images(model_of(shape=(3, 32, 32), data_set="bars"), bars)


@pytest.mark.parametrize("provenance", [{}, {"data_set": "bars"}])
def test_a_model_that_names_no_images_asks_for_them(provenance: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"--data: expected a file or folder .* mine names"):
        load_test_images(model_of(**provenance), None)


def test_fashion_mnist_is_known_by_its_images(bars: Path) -> None:
    assert data.is_fashion_mnist(data.load_test_images()[0][:5])
    assert not data.is_fashion_mnist(data.load_image_set("fashion-mnist", "test", bars)[0])


def test_training_notes_the_users_own_folder_and_its_classes(bars: Path, idx_folder: Path) -> None:
    noted = learnt_data("fashion-mnist", bars, 3)
    assert noted == {"data_set": bars.name, "data_folder": str(bars), "classes": 3}
    assert len(load_test_images(model_of(**noted), None).queries) == 12
    assert learnt_data("mnist", bars, 3)["data_set"] == "mnist"
    assert learnt_data("fashion-mnist", None, 10) == {"data_set": "fashion-mnist", "classes": 10}
    copied = learnt_data("fashion-mnist", idx_folder, 10)
    assert copied == {"data_set": "fashion-mnist", "classes": 10}, "known by its images"
