"""The streaming decoder: the Python face of csrc/decoder.hpp."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np

from codedinv.coding._decoder import LARGEST_NOISE, Decoder, Stored
from codedinv.coding.code import Code

_STORED = {
    "float32": (np.dtype(np.float32), Stored.f32),
    "float64": (np.dtype(np.float64), Stored.f64),
    "float16": (np.dtype(np.float16), Stored.f16),
    "bfloat16": (np.dtype(ml_dtypes.bfloat16), Stored.bf16),
}
# Root mean square of a rounding, relative: half a step either way, uniformly.
_ROUNDING = {
    name: step / 12**0.5
    for name, step in (
        ("float32", 2.0**-23),
        ("float64", 2.0**-52),
        ("float16", 2.0**-10),
        ("bfloat16", 2.0**-7),
    )
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
    Accumulators of more than 4 MiB are held twice, so that a push reads its row once.

    Methods:
        push(slot, embedding, *, check=True): takes one result, an array of `shape` and `dtype` in
            CPU memory: a numpy array, a torch tensor or any DLPack object; one that is not
            contiguous is copied. ValueError, with the decoder unchanged, if the slot is out of
            range or has a result already, if shape, dtype or device differ, if the array is masked
            or has no memory, or if a value is NaN or infinite; TypeError for anything that is no
            array. `check=False` takes the values to be finite and saves reading them twice; their
            norm stays unknown, so `residual` is refused.
        estimate(slot): best-effort embedding of a data slot without a result. Before any k results
            are in, paper eq. (6): the other missing slots, and parities that have not come, count
            as zero; with r > 1, the least-squares solution for this slot over the parities that
            came. From then on it equals `recover()[slot]`. ValueError for a slot that has its
            result, which the decoder does not keep.
        recover(out=None): {slot: embedding} of all missing data slots, the least-squares solution
            over the parities that came; exact where they are as many as the missing. {} when none
            is missing. Written to the first rows of `out`, a contiguous array of as many rows or
            more and of `shape` and `dtype`, where one is given; the embeddings are then views of
            it. ValueError before `ready`.
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

    No answer is given that rounding or overflow has made meaningless. Recovery amplifies the
    rounding of what was pushed, by at most the code's condition number. Where the noise to be
    expected exceeds 0.1 of an embedding, `recover` and `estimate` raise a ValueError that says by
    how much; a decoder whose code and dtype can come to that is a RuntimeWarning when made. All
    that reads the accumulators raises a ValueError where finite results have overflowed in sum.

    Every method may be called from any thread; each call is atomic, and `ready` and `missing` never
    wait for another's work. Embeddings of 64 KiB and more are processed without the GIL and must
    not be written to during the call.

    Args:
        code: the code of the group.
        shape: shape of one embedding.
        dtype: "float32", "float64", "float16" or "bfloat16", or the same as a numpy or torch dtype.

    Raises:
        ValueError: for another dtype, a size below 1, or a shape that no address space can hold.

    Source: supplement C, eq. (6), generalised from r = 1.
    """

    def __init__(self, code: Code, shape: Sequence[int] | int, dtype: Any = "float32") -> None:
        if hasattr(self, "_code"):
            raise TypeError("StreamingDecoder: __init__ was called a second time")
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
        noise = code.condition_number() * _ROUNDING[str(self.dtype)]
        if noise > LARGEST_NOISE:
            warnings.warn(
                f"some erasures of this code, of condition number {code.condition_number():.2g}, "
                f"may not be recovered in {self.dtype}: rounding would put an embedding off by "
                f"more than {LARGEST_NOISE:.0%}, which recover() refuses to answer",
                RuntimeWarning,
                stacklevel=2,
            )

    @property
    def code(self) -> Code:
        """The code of the group."""
        return self._code

    def __repr__(self) -> str:
        return (
            f"StreamingDecoder({self._code!r}, shape={self.shape}, dtype={str(self.dtype)!r}, "
            f"missing={self.missing})"
        )
