"""What a serving install leaves out, and how to get it."""

from __future__ import annotations

from importlib.util import find_spec

from codedinv.errors import MissingExtra

_EXTRAS = {"torch": "train", "onnx": "train", "triton": "triton"}


def require(package: str) -> None:
    """Refuses to go on without a package that an extra brings.

    Raises:
        MissingExtra: it is not installed; the message says what to install.
    """
    if find_spec(package) is None:
        raise missing(package)


def missing(package: str | None) -> MissingExtra:
    """The error for a package that is not installed."""
    install = f"codedinv[{_EXTRAS[package]}]" if package in _EXTRAS else package
    return MissingExtra(f"this needs {package}, which is not installed: pip install '{install}'")
