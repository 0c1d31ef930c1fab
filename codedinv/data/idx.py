"""The IDX format of MNIST and its kin: arrays of unsigned bytes, gzipped or not."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_UNSIGNED_BYTE = 0x08


def read_idx(path: str | Path) -> NDArray[np.uint8]:
    """An array of unsigned bytes in the IDX format, gzipped if the name ends in .gz.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not an IDX file of unsigned bytes, or its length differs from its header's.
    """
    path = Path(path)
    content = path.read_bytes()
    if path.suffix == ".gz":
        try:
            content = gzip.decompress(content)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(f"{path}: damaged gzip file ({error})") from error
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] != _UNSIGNED_BYTE:
        raise ValueError(
            f"{path}: expected an IDX file of unsigned bytes (magic 00 00 08 ndim), "
            f"got {content[:4].hex(' ') or 'an empty file'}"
        )
    header = 4 + 4 * content[3]
    shape = tuple(int(size) for size in np.frombuffer(content[4:header], dtype=">u4"))
    if len(content) != header + math.prod(shape):
        raise ValueError(
            f"{path}: its header promises {math.prod(shape)} bytes {shape}, "
            f"it holds {len(content) - header}"
        )
    return np.frombuffer(content, dtype=np.uint8, offset=header).reshape(shape)


def write_idx(path: str | Path, array: NDArray[np.uint8]) -> None:
    """Writes unsigned bytes in the IDX format, gzipped if the name ends in .gz.

    Images (N, 28, 28) as `train-images-idx3-ubyte` and labels (N,) as `train-labels-idx1-ubyte`,
    and the same with `t10k-` for the test set, make a folder that `load_fashion_mnist` reads.
    """
    path = Path(path)
    if array.dtype != np.uint8:
        raise TypeError(f"array: expected dtype uint8, got {array.dtype}")
    header = bytes([0, 0, _UNSIGNED_BYTE, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    content = header + array.tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
