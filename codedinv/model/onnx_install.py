"""ONNX Runtime as it is installed: one package, or two whose files lie over each other.

`onnxruntime` (CPU) and `onnxruntime-gpu` are two packages with the same files. pip installs both
where `codedinv[onnx-gpu]` is asked for, since codedinv alone needs the first; whose files came last
decides what there is.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Any

from codedinv.errors import CodedInvError


def import_onnxruntime() -> Any:
    """The module.

    Raises:
        ModuleNotFoundError: it is not installed.
        CodedInvError: it cannot be imported, for two packages' files are mixed; says what to do.
    """
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        if error.name == "onnxruntime":
            raise
        raise _mixed(error) from error
    except (ImportError, AttributeError) as error:
        raise _mixed(error) from error
    return onnxruntime


def why_no_cuda() -> str:
    """Why ONNX Runtime cannot run on a CUDA device, and what to install; empty: it can."""
    try:
        providers = import_onnxruntime().get_available_providers()
    except ModuleNotFoundError:
        return "onnxruntime is not installed: pip install 'codedinv[onnx-gpu]'"
    except CodedInvError as error:
        return str(error)
    if "CUDAExecutionProvider" in providers:
        return ""
    if _version("onnxruntime-gpu") is not None:
        return _what_to_do("the files of onnxruntime (CPU) lie over those of onnxruntime-gpu")
    return "onnxruntime is the CPU's: pip install 'codedinv[onnx-gpu]'"


def _mixed(error: Exception) -> Exception:
    if _version("onnxruntime") is None or _version("onnxruntime-gpu") is None:
        return CodedInvError(f"onnxruntime cannot be imported: {type(error).__name__}: {error}")
    return CodedInvError(
        _what_to_do(f"onnxruntime cannot be imported ({error}), as its files are of two packages")
    )


def _what_to_do(what: str) -> str:
    gpu = _version("onnxruntime-gpu")
    return (
        f"{what}: pip install --force-reinstall --no-deps onnxruntime-gpu=={gpu}, which runs on "
        "the CPU too"
    )


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
