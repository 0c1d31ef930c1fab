"""A model that can be served coded: its networks and code, in memory and as a bundle's folder.

What is named here is loaded on first use, so that a worker which needs `codedinv.model.runtimes`
alone stays small.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from codedinv.model.anchors import Anchors
    from codedinv.model.coded_model import CodedModel
    from codedinv.model.find import bundled_names

_HOME = {
    "Anchors": "codedinv.model.anchors",
    "CodedModel": "codedinv.model.coded_model",
    "bundled_names": "codedinv.model.find",
}

__all__ = ["Anchors", "CodedModel", "bundled_names"]


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'codedinv.model' has no attribute {name!r}")
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
