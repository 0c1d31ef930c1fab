"""The streaming decoder: the Python face of csrc/decoder.hpp."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np

from codedinv.coding._decoder import Decoder, Stored
from codedinv.coding.code import Code

_STORED = {
    "float32": (np.dtype(np.float32), Stored.f32),
    "float64": (np.dtype(np.float64), Stored.f64),
    "float16": (np.dtype(np.float16), Stored.f16),
    "bfloat16": (np.dtype(ml_dtypes.bfloat16), Stored.bf16),
}


def _dtype_name(dtype: Any) -> str:
    """Name of a dtype given as a string, a numpy dtype or scalar type, or a torch dtype."""
    if isinstance(dtype, str):
        return dtype
    text = str(dtype)
    if text.startswith("torch."):
        return text.removeprefix("torch.")
    try:
        return str(np.dtype(dtype).name)
    except TypeError:
        return text


class StreamingDecoder(Decoder):
    """Recovers the missing embeddings of one coding group while its results arrive.

    Holds one accumulator of `shape` per parity, in float32 (float64 for float64), and no result:
    `push` costs r scaled additions whatever k is. Slots 0..k-1 are the data, k..n-1 the parities.

    Methods:
        push(slot, embedding): takes one result, an array of `shape` and `dtype` in CPU memory: a
            numpy array, a torch tensor or any DLPack object; one that is not contiguous is copied.
            ValueError, with the decoder unchanged, if the slot is out of range or has a result
            already, if shape, dtype or device differ, or if a value is NaN or infinite; TypeError
            for anything that is no array.
        estimate(slot): best-effort embedding of a data slot without a result. Before any k results
            are in, paper eq. (6): the other missing slots, and parities that have not come, count
            as zero; with r > 1, the least-squares solution for this slot over the parities that
            came. From then on it equals `recover()[slot]`. ValueError for a slot that has its
            result, which the decoder does not keep.
        recover(): {slot: embedding} of all missing data slots, the least-squares solution over the
            parities that came; exact where they are as many as the missing. {} when none is
            missing. ValueError before `ready`.
        residual(): (r,) float64, |parity_i - sum_j c_ij z_j| / (|parity_i| + sum_j |c_ij| |z_j|) of
            each parity: rounding noise where all results are consistent. ValueError until all n
            results are in.
        syndrome(out=None): (r, *shape), the rows parity_i - sum_j c_ij z_j whose norms `residual`
            gives, in float32 (float64 for float64); written to `out`, a contiguous array of that
            shape and dtype, where one is given. ValueError, naming the absent slots, until all n
            results are in.
        reset(): forgets all results.

    Properties: `ready` (any k results are in), `missing` (data slots without a result, ascending),
    `shape`, `dtype`, `code`. Arrays returned are new, of `shape` and `dtype`; bfloat16 is
    `ml_dtypes.bfloat16`.

    Every method may be called from any thread; each call is atomic. Embeddings of 64 KiB and more
    are processed without the GIL and must not be written to during the call.

    Args:
        code: the code of the group.
        shape: shape of one embedding.
        dtype: "float32", "float64", "float16" or "bfloat16", or the same as a numpy or torch dtype.

    Source: supplement C, eq. (6), generalised from r = 1.
    """

    def __init__(self, code: Code, shape: Sequence[int] | int, dtype: Any = "float32") -> None:
        if not isinstance(code, Code):
            raise TypeError(f"code: expected a Code, got {type(code).__name__}")
        stored = _STORED.get(_dtype_name(dtype))
        if stored is None:
            raise ValueError(f"dtype: expected one of {', '.join(_STORED)}, got {dtype!r}")
        sizes = shape if isinstance(shape, Sequence) else (shape,)
        super().__init__(
            code.coefficients.ravel().tolist(),
            code.k,
            code.r,
            [operator.index(size) for size in sizes],
            *stored,
        )
        self._code = code

    @property
    def code(self) -> Code:
        """The code of the group."""
        return self._code

    def __repr__(self) -> str:
        return (
            f"StreamingDecoder({self._code!r}, shape={self.shape}, dtype={str(self.dtype)!r}, "
            f"missing={self.missing})"
        )
