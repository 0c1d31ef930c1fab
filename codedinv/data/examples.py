"""Examples: queries with their classes, whatever they came as, checked once and for all."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_CHANNELS = (1, 3, 4)


@dataclass(frozen=True)
class Examples:
    """Queries with their classes.

    Attributes:
        inputs: uint8 images (N, C, H, W), or float32 (N, *input) as the model takes them.
        labels: int64 (N,), classes from 0.
        source: where they come from, for messages.
        class_names: of the classes; empty: they have none.
        path: of the file or folder that `load_split` read them from; None: they were in memory.
    """

    inputs: NDArray[Any]
    labels: NDArray[np.int64]
    source: str
    class_names: tuple[str, ...] = ()
    path: str | None = None

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of one query."""
        return tuple(self.inputs.shape[1:])

    @property
    def classes(self) -> int:
        """One more than the largest label."""
        return int(self.labels.max()) + 1

    @property
    def input_range(self) -> tuple[float, float] | None:
        """Least and greatest value that a query can have; None: not known."""
        return (0.0, 1.0) if self.inputs.dtype == np.uint8 else None

    def queries(self, picked: Any = slice(None)) -> NDArray[np.float32]:
        """float32 (B, *input) as a model takes them; images in [0, 1]."""
        chosen = self.inputs[picked]
        if chosen.dtype == np.uint8:
            return np.ascontiguousarray(chosen, dtype=np.float32) / np.float32(255)
        return np.ascontiguousarray(chosen, dtype=np.float32)

    def part(self, picked: Any) -> Examples:
        """Those examples alone."""
        return replace(self, inputs=self.inputs[picked], labels=self.labels[picked])

    def check_fit(self, input_shape: Sequence[int] | None = None, outputs: int = 0) -> None:
        """Refuses what a model of that input shape and that many outputs cannot take.

        Raises:
            ValueError: names the source, what was expected and what came.
        """
        if input_shape is not None and self.input_shape != tuple(input_shape):
            raise ValueError(
                f"{self.source}: expected queries {list(input_shape)}, as the model takes them, "
                f"got {list(self.input_shape)}"
            )
        if outputs and self.classes > outputs:
            at = int(self.labels.argmax())
            raise ValueError(
                f"{self.source}: the model tells {outputs} classes apart, labels 0 to "
                f"{outputs - 1}; label {self.labels[at]} came (example {at})"
            )


def as_examples(data: Any, name: str = "data") -> Examples:
    """Examples of whatever people keep data in.

    Args:
        data: `(x, y)` of arrays, tensors or lists; a torch Dataset of `(x, label)`; a DataLoader
            of `(x, labels)`; or Examples. uint8 x are images, (N, H, W), (N, H, W, C) or
            (N, C, H, W); floats (N, *input) are taken as they are.
        name: of the argument, for messages.

    Raises:
        TypeError: data of another kind.
        ValueError: shapes, types or values that cannot be queries and classes.
    """
    if isinstance(data, Examples):
        return data
    if isinstance(data, (str, Path)):
        raise TypeError(f"{name}: expected (x, y), a Dataset or a DataLoader, got the path {data}")
    if isinstance(data, (tuple, list)):
        if len(data) != 2:
            raise ValueError(f"{name}: expected (x, y), got {len(data)} parts")
        return _checked(_array(data[0]), _array(data[1]), name)
    if hasattr(data, "dataset") and hasattr(data, "batch_size"):
        return _checked(*_gathered(_batches_of(data, name)), name)
    if hasattr(data, "__getitem__") and hasattr(data, "__len__"):
        return _checked(*_gathered(_items_of(data, name)), name)
    raise TypeError(
        f"{name}: expected (x, y), a torch Dataset or a DataLoader, got {type(data).__name__}"
    )


def _checked(x: NDArray[Any], y: NDArray[Any], name: str) -> Examples:
    labels = _labels(y, name)
    if x.ndim < 2 or len(x) == 0:
        raise ValueError(f"{name}: expected queries (N, *input), got shape {x.shape}")
    if len(x) != len(labels):
        raise ValueError(
            f"{name}: expected as many labels as queries, got {len(labels)} labels and "
            f"{len(x)} queries"
        )
    return Examples(_inputs(x, name), labels, name)


def _inputs(x: NDArray[Any], name: str) -> NDArray[Any]:
    if x.dtype == np.uint8:
        return _channels_first(x, name)
    if x.dtype.kind != "f":
        raise ValueError(
            f"{name}: expected uint8 images or floats, got queries of {x.dtype}; convert them "
            "(x.astype('float32')) as the model takes them"
        )
    inputs = np.ascontiguousarray(x, dtype=np.float32)
    finite = np.isfinite(inputs.reshape(len(inputs), -1)).all(axis=1)
    if not finite.all():
        raise ValueError(
            f"{name}: expected finite queries, got NaN or infinity in {int((~finite).sum())} of "
            f"{len(inputs)}, first in query {int(finite.argmin())}"
        )
    return inputs


def _channels_first(images: NDArray[np.uint8], name: str) -> NDArray[np.uint8]:
    if images.ndim == 3:
        return np.ascontiguousarray(images[:, None])
    if images.ndim == 4 and images.shape[3] in _CHANNELS:
        return np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    if images.ndim == 4 and images.shape[1] in _CHANNELS:
        return np.ascontiguousarray(images)
    raise ValueError(
        f"{name}: expected uint8 images (N, H, W), (N, H, W, C) or (N, C, H, W) with 1, 3 or 4 "
        f"channels, got {images.shape}"
    )


def _labels(y: NDArray[Any], name: str) -> NDArray[np.int64]:
    if y.ndim != 1 or len(y) == 0:
        raise ValueError(f"{name}: expected labels (N,), one class each, got shape {y.shape}")
    if y.dtype.kind not in "iub":
        raise ValueError(
            f"{name}: expected labels that are classes, integers from 0, got {y.dtype}; "
            "what is measured are accuracies, so there is nothing to fit to numbers or names"
        )
    labels = y.astype(np.int64)
    if labels.min() < 0:
        at = int(labels.argmin())
        raise ValueError(f"{name}: expected labels from 0, got {labels[at]} (example {at})")
    return labels


def _items_of(data: Any, name: str) -> Iterable[tuple[NDArray[Any], NDArray[Any]]]:
    if len(data) == 0:
        raise ValueError(f"{name}: the data set is empty")
    for number in range(len(data)):
        x, label = _pair(data[number], f"{name}[{number}]")
        yield x[None], np.asarray(label).reshape(1, *np.shape(label))


def _batches_of(loader: Any, name: str) -> Iterable[tuple[NDArray[Any], NDArray[Any]]]:
    for number, batch in enumerate(loader):
        yield _pair(batch, f"{name}, batch {number}")


def _gathered(
    parts: Iterable[tuple[NDArray[Any], NDArray[Any]]],
) -> tuple[NDArray[Any], NDArray[Any]]:
    xs, ys = zip(*parts, strict=True)
    shapes = {x.shape[1:] for x in xs}
    if len(shapes) > 1:
        raise ValueError(f"data: expected queries of one shape, got {sorted(shapes)}")
    return np.concatenate(xs), np.concatenate(ys)


def _pair(item: Any, name: str) -> tuple[NDArray[Any], NDArray[Any]]:
    if not isinstance(item, (tuple, list)) or len(item) != 2:
        raise ValueError(f"{name}: expected (query, label), got {type(item).__name__}")
    return _array(item[0]), _array(item[1])


def _array(value: Any) -> NDArray[Any]:
    """A numpy array of an array, a tensor, an image or a list."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        if str(value.dtype) == "torch.bfloat16":
            value = value.float()
    return np.asarray(value)
