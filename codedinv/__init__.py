"""Prediction serving that answers every query on time, by coded computation.

The names below are loaded on first use, so that `import codedinv` stays quick: torch, numpy and the
serving machinery are imported by the parts that need them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from codedinv.lazy import lazily

if TYPE_CHECKING:
    from codedinv.coding import Code, StreamingDecoder
    from codedinv.errors import (
        BundleError,
        CodedInvError,
        DeadlineExceeded,
        NotConverged,
        Overloaded,
        ServerClosed,
        Unrecoverable,
        WrongProcess,
        WrongThread,
    )
    from codedinv.fitting import fit
    from codedinv.model import CodedModel
    from codedinv.serving import CodedServer, Policy, Prediction

__version__ = "0.1.0"

_HOME = {
    "CodedServer": "codedinv.serving",
    "CodedModel": "codedinv.model",
    "Code": "codedinv.coding",
    "StreamingDecoder": "codedinv.coding",
    "Policy": "codedinv.serving",
    "Prediction": "codedinv.serving",
    "fit": "codedinv.fitting",
    "CodedInvError": "codedinv.errors",
    "BundleError": "codedinv.errors",
    "DeadlineExceeded": "codedinv.errors",
    "NotConverged": "codedinv.errors",
    "Overloaded": "codedinv.errors",
    "ServerClosed": "codedinv.errors",
    "Unrecoverable": "codedinv.errors",
    "WrongProcess": "codedinv.errors",
    "WrongThread": "codedinv.errors",
}

__all__ = [
    "BundleError",
    "Code",
    "CodedInvError",
    "CodedModel",
    "CodedServer",
    "DeadlineExceeded",
    "NotConverged",
    "Overloaded",
    "Policy",
    "Prediction",
    "ServerClosed",
    "StreamingDecoder",
    "Unrecoverable",
    "WrongProcess",
    "WrongThread",
    "fit",
]

__getattr__, __dir__ = lazily(__name__, _HOME)
