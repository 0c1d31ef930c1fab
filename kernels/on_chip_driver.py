"""Loads and launches compiled kernels through the CUDA driver, in the context that torch uses."""

from __future__ import annotations

import ctypes
from functools import cache
from threading import Lock

import torch

from .on_chip_compile import cubin
from .on_chip_launch import Arguments
from .on_chip_shape import Layout

# CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
_SHARED_SIZE = 8


class DriverError(RuntimeError):
    """The CUDA driver refused something."""


@cache
def _driver() -> ctypes.CDLL:
    return ctypes.CDLL("libcuda.so.1")


def _call(function: str, *arguments: object) -> None:
    code = getattr(_driver(), function)(*arguments)
    if code:
        text = ctypes.c_char_p()
        _driver().cuGetErrorString(code, ctypes.byref(text))
        reason = text.value.decode() if text.value else str(code)
        raise DriverError(f"{function}: {reason}")


def _primary_context(device: torch.device) -> ctypes.c_void_p:
    """The context of a device that torch, too, works in."""
    torch.cuda.init()
    ordinal, context = ctypes.c_int(), ctypes.c_void_p()
    _call("cuDeviceGet", ctypes.byref(ordinal), device.index)
    _call("cuDevicePrimaryCtxRetain", ctypes.byref(context), ordinal)
    return context


class Kernel:
    """One kernel of one layout on one device.

    Args:
        name: "forward" or "inversion".
        layout, dtype: what it is compiled for.
        device: a CUDA device with an index.

    Raises:
        CompileError: it cannot be compiled. DriverError: it cannot be loaded.
    """

    def __init__(self, name: str, layout: Layout, dtype: torch.dtype, device: torch.device) -> None:
        major, minor = torch.cuda.get_device_capability(device)
        image = cubin(layout, dtype, 10 * major + minor)
        self._device, self._threads = device, 32 * layout.warps
        self._cluster, self._shared = layout.cluster, layout.shared_bytes(name)
        self._context, self._function = _primary_context(device), ctypes.c_void_p()
        module = ctypes.c_void_p()
        with torch.cuda.device(device):
            _call("cuCtxSetCurrent", self._context)
            _call("cuModuleLoadData", ctypes.byref(module), image)
            _call(
                "cuModuleGetFunction", ctypes.byref(self._function), module,
                f"{name}_kernel".encode(),
            )  # fmt: skip
            _call("cuFuncSetAttribute", self._function, _SHARED_SIZE, self._shared)

    def __call__(self, arguments: Arguments, clusters: int) -> None:
        """Launches it on the current stream. That its blocks come in clusters is written in the
        kernel, so an ordinary launch will do."""
        parameters = (ctypes.c_void_p * 1)(ctypes.addressof(arguments))
        with torch.cuda.device(self._device):
            stream = torch.cuda.current_stream().cuda_stream
            # A thread has none until the runtime needs one there, which torch may not have asked of
            # it: not for the device it begins with, nor for memory out of its cache.
            _call("cuCtxSetCurrent", self._context)
            _call(
                "cuLaunchKernel", self._function, clusters * self._cluster, 1, 1,
                self._threads, 1, 1, self._shared, ctypes.c_void_p(stream), parameters, None,
            )  # fmt: skip


_kernels: dict[tuple[str, Layout, torch.dtype, torch.device], Kernel] = {}
_lock = Lock()


def kernel_of(name: str, layout: Layout, dtype: torch.dtype, device: torch.device) -> Kernel:
    """The kernel, compiled and loaded when it is asked for first; kept for the process, as its
    module may be in a CUDA graph."""
    key = name, layout, dtype, device
    found = _kernels.get(key)
    if found is None:
        with _lock:
            found = _kernels.get(key)
            if found is None:
                found = _kernels[key] = Kernel(name, layout, dtype, device)
    return found
