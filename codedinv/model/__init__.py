"""A model that can be served coded: its networks and code, in memory and as a bundle's folder.

What is named here is loaded on first use, so that a worker which needs `codedinv.model.runtimes`
alone stays small.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from codedinv.lazy import lazily

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

__getattr__, __dir__ = lazily(__name__, _HOME)
