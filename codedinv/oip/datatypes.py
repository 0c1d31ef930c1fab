"""The protocol's datatypes and numpy's."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from codedinv.oip.errors import ProtocolError

BYTES = "BYTES"

# Raw contents are little-endian, whatever the machine.
_DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype("u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    BYTES: np.dtype(object),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


def dtype_of(datatype: Any) -> np.dtype[Any]:
    """numpy's dtype for a datatype; for BYTES it is object, each element `bytes`.

    Raises:
        ProtocolError: there is none of this name.
    """
    dtype = _DTYPES.get(datatype) if isinstance(datatype, str) else None
    if dtype is None:
        raise ProtocolError(f"datatype: expected one of {sorted(_DTYPES)}, got {datatype!r}")
    return dtype


def datatype_of(dtype: np.dtype[Any]) -> str:
    """The datatype that carries a numpy dtype.

    Raises:
        ProtocolError: none does.
    """
    name = _NAMES.get(dtype.newbyteorder("<") if dtype.byteorder == ">" else dtype)
    if name is None:
        raise ProtocolError(f"dtype: no datatype of the protocol carries {dtype}")
    return name
