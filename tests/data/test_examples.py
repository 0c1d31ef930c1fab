"""Data of every kind becomes examples, and what cannot be is refused by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset

from codedinv.data import Examples, as_examples

RANDOM = np.random.default_rng(0)
VECTORS = RANDOM.random((6, 5), dtype=np.float32)
LABELS = np.array([0, 1, 2, 0, 1, 2])


class Images(Dataset):  # type: ignore[type-arg]
    """uint8 images one by one, as torchvision's without a transform give them."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, number: int) -> tuple[Any, int]:
        if number >= 6:
            raise IndexError
        return np.full((8, 9, 3), number, np.uint8), number % 3


@pytest.mark.parametrize(
    "data",
    [
        (VECTORS, LABELS),
        [VECTORS.astype(np.float64), LABELS.tolist()],
        (torch.from_numpy(VECTORS), torch.from_numpy(LABELS)),
        (torch.from_numpy(VECTORS).requires_grad_(), torch.from_numpy(LABELS).int()),
        TensorDataset(torch.from_numpy(VECTORS), torch.from_numpy(LABELS)),
        DataLoader(TensorDataset(torch.from_numpy(VECTORS), torch.from_numpy(LABELS)), 4),
    ],
    ids=["arrays", "float64 and a list", "tensors", "with gradients", "Dataset", "DataLoader"],
)
def test_vectors_come_in_whatever_people_keep_them_in(data: Any) -> None:
    examples = as_examples(data)
    np.testing.assert_array_equal(examples.queries(), VECTORS)
    assert examples.queries().dtype == np.float32
    assert examples.labels.tolist() == LABELS.tolist()
    assert (examples.input_shape, examples.classes, examples.input_range) == ((5,), 3, None)


@pytest.mark.parametrize(
    ("shape", "queries"),
    [
        ((6, 8, 9), (6, 1, 8, 9)),
        ((6, 8, 9, 3), (6, 3, 8, 9)),
        ((6, 3, 8, 9), (6, 3, 8, 9)),
        ((6, 1, 8, 9), (6, 1, 8, 9)),
    ],
)
def test_images_become_channels_first_in_the_unit_interval(
    shape: tuple[int, ...], queries: tuple[int, ...]
) -> None:
    images = RANDOM.integers(0, 256, shape, dtype=np.uint8)
    images.flat[:2] = (0, 255)
    examples = as_examples((images, LABELS))
    assert examples.queries().shape == queries
    assert (examples.queries().min(), examples.queries().max()) == (0, 1)
    assert examples.input_range == (0, 1)
    assert examples.inputs.nbytes == images.nbytes, "kept as bytes"


def test_a_data_set_of_images_is_gathered() -> None:
    examples = as_examples(Images(), "train")
    assert examples.queries().shape == (6, 3, 8, 9)
    np.testing.assert_allclose(examples.queries()[:, 0, 0, 0], np.arange(6) / 255, rtol=1e-6)
    assert examples.labels.tolist() == LABELS.tolist()


def test_examples_pass_and_can_be_picked_from() -> None:
    examples = as_examples((VECTORS, LABELS))
    assert as_examples(examples) is examples
    part = examples.part([4, 0])
    np.testing.assert_array_equal(part.queries(), VECTORS[[4, 0]])
    assert (part.labels.tolist(), len(part)) == ([1, 0], 2)


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        ((VECTORS, LABELS[:5]), "as many labels as queries, got 5 labels and 6 queries"),
        ((VECTORS, LABELS.astype(float)), "labels that are classes, integers from 0, got float64"),
        ((VECTORS, LABELS - 1), r"labels from 0, got -1 \(example 0\)"),
        ((VECTORS, LABELS[:, None]), r"labels \(N,\), one class each, got shape \(6, 1\)"),
        ((VECTORS, np.array(list("abcabc"))), "got <U1"),
        ((VECTORS.astype(np.int64), LABELS), "uint8 images or floats, got queries of int64"),
        ((np.where(LABELS[:, None] == 2, np.nan, VECTORS), LABELS), "in 2 of 6, first in query 2"),
        ((np.zeros((6, 5), np.uint8), LABELS), r"uint8 images \(N, H, W\).*got \(6, 5\)"),
        ((np.zeros((6, 2, 5, 7), np.uint8), LABELS), "with 1, 3 or 4 channels"),
        ((VECTORS[:0], LABELS[:0]), "got shape"),
        ((VECTORS, LABELS, LABELS), r"\(x, y\), got 3 parts"),
        ([(VECTORS[0], 1, 2)], r"expected \(x, y\), got 1 parts"),
    ],
)
def test_what_cannot_be_data_is_refused_with_what_was_expected(data: Any, complaint: str) -> None:
    with pytest.raises(ValueError, match=rf"^train: .*{complaint}"):
        as_examples(data, "train")


def test_other_kinds_are_named() -> None:
    with pytest.raises(TypeError, match=r"train: expected \(x, y\), a torch Dataset .*, got int"):
        as_examples(3, "train")
    with pytest.raises(TypeError, match="got the path somewhere"):
        as_examples("somewhere", "train")


def test_queries_of_several_shapes_are_refused() -> None:
    class Ragged(Images):
        def __getitem__(self, number: int) -> tuple[Any, int]:
            return np.zeros((8, 8 + number), np.float32), 0

    with pytest.raises(ValueError, match="queries of one shape"):
        as_examples(Ragged())


def test_label_11_of_10_classes_is_refused_by_example_before_any_training() -> None:
    labels = np.array([3, 9, 11, 0, 1, 2])
    examples = as_examples((VECTORS, labels), "train")
    with pytest.raises(ValueError, match=r"labels 0 to 9; label 11 came \(example 2\)"):
        examples.check_fit(outputs=10)
    with pytest.raises(ValueError, match=r"expected queries \[3, 32, 32\], .* got \[5\]"):
        examples.check_fit((3, 32, 32))
    examples.check_fit((5,), outputs=12)


def test_examples_say_what_they_are() -> None:
    assert isinstance(as_examples((VECTORS, LABELS), "test"), Examples)
    assert as_examples((VECTORS, LABELS), "test").source == "test"
