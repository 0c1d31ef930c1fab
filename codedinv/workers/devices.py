"""Which devices workers run on, and by which runtime: found out before any worker starts.

The front end itself never touches a device: a process of its own asks the driver for them.
"""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from codedinv.model.onnx_install import why_no_cuda
from codedinv.model.runtimes import Runtime, choose_runtime

CPU = "cpu"
_ANSWERS_S = 60.0  # the driver's first start on a machine may take seconds
_COUNT = """
import ctypes
cuda = ctypes.CDLL("libcuda.so.1")
code = cuda.cuInit(0)
count = ctypes.c_int()
if code != 100:  # no device is there
    code = code or cuda.cuDeviceGetCount(ctypes.byref(count))
    if code:
        raise SystemExit(f"the CUDA driver answered with error {code}")
print(count.value)
"""


def choose_devices(devices: str | Sequence[str]) -> tuple[str, ...]:
    """The devices of workers 0, 1, ..., to be gone through again and again.

    Args:
        devices: "cpu"; "cuda", all that there are; "cuda:1"; or a list, where one may be named
            several times.

    Raises:
        ValueError: a name that is none, both kinds, or a device that is not there; says which are.
    """
    names = [devices] if isinstance(devices, str) else list(devices)
    if not names:
        raise ValueError("devices: expected at least one")
    for name in names:
        if not isinstance(name, str) or not re.fullmatch(r"cpu|cuda(:\d+)?", name):
            raise ValueError(f"devices: expected 'cpu', 'cuda' or 'cuda:0' and so on, got {name!r}")
    if set(names) == {CPU}:
        return (CPU,)
    if CPU in names:
        raise ValueError(f"devices: expected the CPU or CUDA devices, got both: {names}")
    count, why = _count()
    here = [f"cuda:{index}" for index in range(count)]
    if not here:
        raise ValueError(f"devices: expected CUDA devices, got {names}, and there are none{why}")
    missing = [name for name in names if name not in ("cuda", *here)]
    if missing:
        raise ValueError(f"devices: {', '.join(missing)} is not there; there is {', '.join(here)}")
    return tuple(name for given in names for name in (here if given == "cuda" else [given]))


def choose_runtime_on(devices: Sequence[str], runtime: Runtime) -> Literal["onnx", "torch"]:
    """Resolves "auto": on the CPU as `choose_runtime`; on CUDA devices torch where it is built for
    them, which then runs its own kernels or ours as the receipts say, else ONNX Runtime.

    Raises:
        ValueError: an unknown name, or one that cannot run there; says what to install.
    """
    if set(devices) == {CPU} or runtime not in ("auto", "onnx", "torch"):
        return choose_runtime(runtime)
    reasons = []
    if runtime in ("auto", "torch"):
        reasons.append(_why_no_torch())
        if not reasons[-1]:
            return "torch"
    if runtime in ("auto", "onnx"):
        reasons.append(why_no_cuda())
        if not reasons[-1]:
            return "onnx"
    raise ValueError(
        f"runtime: {runtime!r} does not run on CUDA devices here; {'; '.join(reasons)}"
    )


def _count() -> tuple[int, str]:
    """How many CUDA devices there are; why none, where that is known.

    In a process of its own: a process that has started the driver cannot be forked.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-c", _COUNT],
            capture_output=True,
            text=True,
            timeout=_ANSWERS_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return 0, f" (the CUDA driver did not answer within {_ANSWERS_S:g} s)"
    if done.returncode == 0:
        return int(done.stdout), ""
    last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
    return 0, f" ({last})"


def _why_no_torch() -> str:
    """Why torch cannot run on a CUDA device; empty: it can. torch itself is not imported: a front
    end does without it."""
    found = find_spec("torch")
    if found is None or found.origin is None:
        return "torch is not installed: pip install 'codedinv[triton]'"
    about = runpy.run_path(str(Path(found.origin).with_name("version.py")))
    return "" if about.get("cuda") else f"torch {about['__version__']} is built without CUDA"
