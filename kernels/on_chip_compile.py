"""Compiles the kernels of cuda/ with NVRTC, which comes with torch, and keeps what it compiled."""

from __future__ import annotations

import ctypes
import ctypes.util
import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch

from .gate import say_once
from .on_chip_shape import Layout

SOURCES = Path(__file__).with_name("cuda")
MAIN = "stage.cu"

# Bytes of a file of the cache before what was compiled: its SHA-256.
_DIGEST = 32


class CompileError(RuntimeError):
    """NVRTC is missing or refused a source; the message has its log."""


def _candidates() -> list[str]:
    """Where NVRTC may be: torch's own, the wheels that torch depends on, the system's; first those
    of the CUDA that torch was built for, whose cards and driver it knows, before a wheel that
    something else brought."""
    cuda = torch.version.cuda
    own = f"libnvrtc.so.{cuda.partition('.')[0]}" if cuda else "libnvrtc.so"
    # By its bare name where the loader knows it: one that is loaded, or lies in conda's lib.
    found = [*_installed(), own]
    return sorted(found, key=lambda name: own.removeprefix("libnvrtc") not in Path(name).name)


def _installed() -> Iterator[str]:
    folders = [Path(torch.__file__).parent / "lib"]
    wheels = find_spec("nvidia")
    if wheels is not None:
        for place in wheels.submodule_search_locations or ():
            folders += sorted(Path(place).glob("*/lib"), reverse=True)
    for folder in folders:
        for path in sorted(folder.glob("libnvrtc*.so*")):
            if "builtins" not in path.name and "alt" not in path.name:
                yield str(path)
    if found := ctypes.util.find_library("nvrtc"):
        yield found


@cache
def nvrtc() -> ctypes.CDLL | None:
    """The library, None where there is none."""
    for name in _candidates():
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None


def _call(library: ctypes.CDLL, function: str, *arguments: object) -> None:
    library.nvrtcGetErrorString.restype = ctypes.c_char_p
    code = getattr(library, function)(*arguments)
    if code:
        reason = library.nvrtcGetErrorString(code).decode()
        raise CompileError(f"{function}: {reason}")


def _text(library: ctypes.CDLL, program: ctypes.c_void_p, what: str) -> bytes:
    """What `nvrtcGet{what}` gives."""
    size = ctypes.c_size_t()
    _call(library, f"nvrtcGet{what}Size", program, ctypes.byref(size))
    text = ctypes.create_string_buffer(size.value)
    _call(library, f"nvrtcGet{what}", program, text)
    return text.raw


def _compile(library: ctypes.CDLL, options: tuple[str, ...]) -> bytes:
    headers = sorted(SOURCES.glob("*.cuh"))
    strings = ctypes.c_char_p * len(headers)
    program = ctypes.c_void_p()
    _call(
        library, "nvrtcCreateProgram", ctypes.byref(program),
        (SOURCES / MAIN).read_bytes(), MAIN.encode(), len(headers),
        strings(*(path.read_bytes() for path in headers)),
        strings(*(path.name.encode() for path in headers)),
    )  # fmt: skip
    try:
        words = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        try:
            _call(library, "nvrtcCompileProgram", program, len(options), words)
        except CompileError as error:
            log = _text(library, program, "ProgramLog").decode(errors="replace")
            raise CompileError(f"{error}\n{log}") from None
        return _text(library, program, "CUBIN")
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))


def cache_folder() -> Path | None:
    """Where compiled kernels are kept between processes; None where nobody is at home, as in a
    container for a user that it does not know."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "codedinv" / "on_chip" if os.path.isabs(base) else None


def cubin(layout: Layout, dtype: torch.dtype, capability: int) -> bytes:
    """Both kernels of a layout, compiled for a card; from disk where they have been before.

    Args:
        layout: what to compile for. dtype: bfloat16 or float16. capability: 90 for 9.0.

    Raises:
        CompileError: there is no NVRTC, or it refuses.
    """
    library = nvrtc()
    if library is None:
        raise CompileError(
            "NVRTC was not found: it comes with torch for CUDA, or with nvidia-cuda-nvrtc"
        )
    # constexpr functions of shape.cuh are for the compiler; NVRTC wants to be told whose they are.
    flags = (f"--gpu-architecture=sm_{capability}", "--std=c++17", "-default-device")
    options = (*flags, *layout.defines(dtype))
    folder = cache_folder()
    if folder is None:
        return _compile(library, options)
    path = folder / f"{_key(library, options)}.cubin"
    compiled = _kept(path)
    if compiled is None:
        compiled = _compile(library, options)
        _keep(path, compiled)
    return compiled


def _key(library: ctypes.CDLL, options: tuple[str, ...]) -> str:
    """A digest of all that decides what is compiled."""
    major, minor = ctypes.c_int(), ctypes.c_int()
    _call(library, "nvrtcVersion", ctypes.byref(major), ctypes.byref(minor))
    digest = hashlib.sha256(repr((major.value, minor.value, options)).encode())
    for path in sorted(SOURCES.glob("*.cu*")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:32]


def _kept(path: Path) -> bytes | None:
    """What `_keep` wrote; None where there is nothing, or not all of it: a machine that lost its
    power leaves files of a right name and length and a wrong content."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    digest, compiled = content[:_DIGEST], content[_DIGEST:]
    return compiled if hashlib.sha256(compiled).digest() == digest else None


def _keep(path: Path, compiled: bytes) -> None:
    """Writes a file whole or not at all, as several processes may; without it they compile anew."""
    name = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            name = file.name
            file.write(hashlib.sha256(compiled).digest() + compiled)
        os.replace(name, path)
    except OSError as error:
        if name is not None:
            with suppress(OSError):
                os.unlink(name)
        say_once(f"codedinv.kernels keeps no compiled kernels in {path.parent}: {error}")
