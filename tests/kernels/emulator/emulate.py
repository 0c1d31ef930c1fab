"""Builds the kernels of kernels/cuda for this CPU, and runs them."""

from __future__ import annotations

import ctypes
import hashlib
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from codedinv.kernels import on_chip_launch
from codedinv.kernels.on_chip_packing import pack_on_chip
from codedinv.kernels.on_chip_shape import Layout
from codedinv.kernels.reference import Block

HERE = Path(__file__).resolve().parent
SOURCES = HERE.parents[2] / "kernels" / "cuda"


@cache
def _folder() -> Path:
    """Of this process, removed at its end."""
    folder = tempfile.TemporaryDirectory(prefix="on-chip-")
    _kept.append(folder)
    return Path(folder.name)


_kept: list[tempfile.TemporaryDirectory[str]] = []


@cache
def build(layout: Layout, dtype: torch.dtype, source: str, flags: tuple[str, ...]) -> Path:
    """Compiles one of the sources here for a layout."""
    compiler = shutil.which("c++")
    assert compiler is not None, "the package was built, so there is a C++ compiler"
    name = hashlib.sha256(repr((layout, dtype, source, flags)).encode()).hexdigest()[:16]
    out = _folder() / name
    command = [
        compiler, "-std=c++17", "-DCODEDINV_EMULATED", "-U_FORTIFY_SOURCE", "-Wall",
        "-Wextra", "-Wno-unknown-pragmas", "-I", str(SOURCES), "-I", str(HERE),
        *flags, *layout.defines(dtype), str(HERE / source), "-o", str(out),
    ]  # fmt: skip
    subprocess.run(command, check=True)
    return out


@cache
def library(layout: Layout, dtype: torch.dtype) -> ctypes.CDLL:
    """The kernels of a layout."""
    path = build(layout, dtype, "emulator.cpp", ("-O1", "-shared", "-fPIC"))
    return ctypes.CDLL(str(path))


def launch(
    kernel: str,
    layout: Layout,
    dtype: torch.dtype,
    arguments: on_chip_launch.Arguments,
    clusters: int,
    seed: int = 0,
) -> None:
    """Runs kernel "forward" or "inversion". seed: of the order in which warps run."""
    stuck = library(layout, dtype).launch(
        f"{kernel}_kernel".encode(), ctypes.byref(arguments), clusters, seed
    )
    assert not stuck, "threads wait for each other forever"


class Emulated:
    """Blocks on an emulated card. seed: of the order in which its warps run."""

    def __init__(
        self, blocks: Sequence[Block], layout: Layout, dtype: torch.dtype, seed: int = 0
    ) -> None:
        self.layout, self.dtype, self.seed = layout, dtype, seed
        self.weights = pack_on_chip(blocks, layout, dtype)
        flags = [int(leading) for _, leading in blocks]
        self.leading = torch.tensor([*flags, 0], dtype=torch.int32)

    def __call__(self, x: Tensor) -> Tensor:
        """All blocks of x."""
        out = torch.empty_like(x)
        self._launch("forward", on_chip_launch.arguments_of(x, out, self.weights, self.leading))
        return out

    def invert(self, y: Tensor, tol: float, max_iter: int = 100) -> tuple[Tensor, Tensor, Tensor]:
        """x, iterations and residual, as `PreparedBlocks.invert`."""
        out = torch.empty_like(y)
        shape = y.shape[0], self.leading.shape[0] - 1
        verdicts = torch.empty(shape, dtype=torch.int32), torch.empty(shape)
        arguments = on_chip_launch.arguments_of(
            y, out, self.weights, self.leading, verdicts, tol, max_iter
        )
        self._launch("inversion", arguments)
        return out, *verdicts

    def _launch(self, kernel: str, arguments: on_chip_launch.Arguments) -> None:
        clusters = -(-arguments.batch // self.layout.images)
        launch(kernel, self.layout, self.dtype, arguments, clusters, self.seed)
