"""Compiles kernel variants for GPUs that are not here, and reports what they would use.

    python -m codedinv.kernels.aot --arch 90 --dtype bfloat16 [--kernel inversion] [--json]

Needs no GPU: Triton compiles for any target. Registers, spills and shared memory come from the
assembled machine code (cuobjdump of Triton's own package), tensor-core use from the PTX.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from .launch import most_registers, sizes_of
from .shapes import Stage, parts_of
from .tuning import DTYPES, STAGES, Card, StageTuning, stage_tuning

KERNELS = ("stage", "inversion", "anderson", "stage of few", "inversion of few",
           "anderson of few", "power")  # fmt: skip
ARCHITECTURES = (80, 90, 100, 120)

# Shared memory one program may use, KiB (CUDA programming guide, compute capabilities).
SHARED_LIMIT_KIB = {80: 163, 90: 227, 100: 227, 120: 99}

# An H200's; the band variant is cut for batch 1 on it.
_MULTIPROCESSORS = 132

_ELEMENT = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}
_TENSOR_CORE = {
    "wgmma": r"wgmma\.mma_async",
    "tcgen05": r"tcgen05\.mma",
    "mma": r"\bmma\.sync",
}


@dataclass(frozen=True)
class Variant:
    """One compiled form of a kernel."""

    kernel: str
    stage: Stage
    dtype: torch.dtype
    tuning: StageTuning

    def __str__(self) -> str:
        return f"{self.kernel} {self.stage} {str(self.dtype).removeprefix('torch.')}"


@dataclass(frozen=True)
class Resources:
    """What a compiled variant uses.

    Attributes:
        variant, arch: which one, for which compute capability (90: sm_90).
        registers: per thread. stack_bytes: per thread; spilled registers show here.
        local_bytes: of local memory per thread. shared_bytes: per program.
        tensor_core: counts of matrix instructions in the PTX by kind (wgmma, tcgen05, mma).
    """

    variant: str
    arch: int
    warps: int
    registers: int
    stack_bytes: int
    local_bytes: int
    shared_bytes: int
    tensor_core: dict[str, int]

    @property
    def spills(self) -> bool:
        return self.stack_bytes > 0 or self.local_bytes > 0


def variants(
    arch: int,
    kernels: tuple[str, ...] = KERNELS,
    stages: tuple[Stage, ...] = STAGES,
    dtypes: tuple[torch.dtype, ...] = DTYPES,
) -> Iterator[Variant]:
    """Every variant that tuning.py would run on an unmeasured card of compute capability `arch`."""
    card = Card(f"sm_{arch}", _MULTIPROCESSORS, arch)
    for kernel in kernels:
        name = kernel.removesuffix(" of few").replace("anderson", "inversion")
        batch = 1 if kernel.endswith(" of few") else 1024
        for stage in stages:
            for dtype in dtypes:
                if kernel == "power" and dtype != torch.float32:
                    continue
                tuning = stage_tuning(name, stage, dtype, batch, card)
                if kernel == "power":
                    tuning = replace(tuning, num_warps=4, num_stages=2)
                yield Variant(kernel, stage, dtype, tuning)


def compile_variant(variant: Variant, arch: int) -> Resources:
    """Compiles one variant for compute capability `arch` (80, 90, 100, 120) and reports its use.

    Raises:
        RuntimeError: it does not compile, or to something without matrix instructions.
    """
    function, constants, pointers = _plan(variant)
    names = list(function.arg_names)
    signature = {name: _type_of(name, pointers, constants) for name in names}
    # As the launcher would find: whole-tensor pointers are 16-byte aligned.
    attributes = {
        (index,): [["tt.divisibility", 16]] for index, name in enumerate(names) if name in pointers
    }
    source = ASTSource(function, signature, constants, attributes)
    options = {
        "num_warps": variant.tuning.num_warps,
        "num_stages": variant.tuning.num_stages,
        "maxnreg": most_registers(variant.tuning.num_warps),
    }
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    registers, stack, local = _resource_usage(compiled.asm["cubin"])
    ptx = compiled.asm["ptx"]
    counts = {kind: len(re.findall(pattern, ptx)) for kind, pattern in _TENSOR_CORE.items()}
    if not any(counts.values()):
        # What Triton emits where tensor memory does not suffice is a kernel that traps.
        raise RuntimeError(f"{variant} for sm_{arch}: the compiler emitted no matrix instruction")
    return Resources(
        variant=str(variant),
        arch=arch,
        warps=variant.tuning.num_warps,
        registers=registers,
        stack_bytes=stack,
        local_bytes=local,
        shared_bytes=compiled.metadata.shared,
        tensor_core={kind: count for kind, count in counts.items() if count},
    )


def _plan(variant: Variant) -> tuple[triton.JITFunction, dict[str, object], dict[str, str]]:
    """(kernel, its constexprs, its pointers' element types) for a variant."""
    from . import anderson, inversion, residual, spectral_norm

    stage, tuning = variant.stage, variant.tuning
    element = _ELEMENT[variant.dtype]
    if variant.kernel == "power":
        return spectral_norm.power_kernel, *spectral_norm.aot_arguments(stage, tuning)
    pointers = dict.fromkeys(("x", "y", "out"), element)
    part = _ELEMENT[parts_of(variant.dtype)[0]]
    pointers |= dict.fromkeys(("activated", "inner", "w1", "w2", "w3"), part)
    pointers |= dict.fromkeys(
        ("b1", "b2", "b3", "images", "partial", "sums", "residual"), "*fp32"
    )  # fmt: skip
    pointers |= dict.fromkeys(("leading", "iterations", "counters"), "*i32")
    kernel = variant.kernel.removesuffix(" of few")
    constants: dict[str, object] = {
        "S": sizes_of(kernel, stage, variant.dtype, tuning, False),
        # Strides that the launcher would specialise for a channels-last input.
        "x_channel": 1, "y_channel": 1, "out_channel": 1,
    }  # fmt: skip
    function = {
        "stage": residual.stage_kernel,
        "inversion": inversion.invert_kernel,
        "anderson": anderson.anderson_kernel,
    }[kernel]
    names = set(function.arg_names)
    return (
        function,
        {name: value for name, value in constants.items() if name in names},
        {name: kind for name, kind in pointers.items() if name in names},
    )


def _type_of(name: str, pointers: dict[str, str], constants: dict[str, object]) -> str:
    if name in constants:
        return "constexpr"
    if name in pointers:
        return pointers[name]
    return "fp32" if name == "tolerance" else "i32"


def _resource_usage(cubin: bytes) -> tuple[int, int, int]:
    """(registers, stack bytes, local bytes) of the one kernel in a cubin."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run(
            [tool, "--dump-resource-usage", file.name], check=True, capture_output=True, text=True
        ).stdout
    match = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", text)
    if match is None:
        raise RuntimeError(f"cuobjdump gave no resource usage: {text!r}")
    registers, stack, local = (int(group) for group in match.groups())
    return registers, stack, local


def _report(resources: Resources, as_json: bool) -> None:
    if as_json:
        print(json.dumps({**asdict(resources), "spills": resources.spills}), flush=True)
        return
    matrix = " ".join(f"{kind} {count}" for kind, count in resources.tensor_core.items())
    print(
        f"{resources.variant:36s} sm_{resources.arch:<4d} {resources.warps} warps "
        f"{resources.registers:4d} registers {resources.stack_bytes:5d} stack "
        f"{resources.shared_bytes / 1024:6.1f} KiB shared  {matrix or '-'}",
        flush=True,
    )


def main(arguments: list[str] | None = None) -> int:
    """Prints a table (or JSON) of the resources of the chosen variants."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m codedinv.kernels.aot")
    parser.add_argument("--arch", type=int, nargs="+", choices=ARCHITECTURES, default=[90])
    parser.add_argument("--kernel", nargs="+", choices=KERNELS, default=list(KERNELS))
    parser.add_argument("--stage", nargs="+", metavar="C@HxW/M", help="default: every recipe's")
    parser.add_argument(
        "--dtype", nargs="+", choices=["float32", "bfloat16", "float16"],
        default=["float32", "bfloat16"],
    )  # fmt: skip
    parser.add_argument(
        "--variant", nargs="+", metavar="KERNEL:STAGE:DTYPE:ARCH", help="these, and no others"
    )
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    if options.variant:
        for text in options.variant:
            kernel, name, dtype, arch = text.split(":")
            stage = next(stage for stage in STAGES if str(stage) == name)
            [variant] = variants(int(arch), (kernel,), (stage,), (getattr(torch, dtype),))
            _report(compile_variant(variant, int(arch)), options.json)
        return 0
    stages = STAGES
    if options.stage:
        stages = tuple(stage for stage in STAGES if str(stage) in options.stage)
    dtypes = tuple(getattr(torch, name) for name in options.dtype)
    for arch in options.arch:
        for variant in variants(arch, tuple(options.kernel), stages, dtypes):
            _report(compile_variant(variant, arch), options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
