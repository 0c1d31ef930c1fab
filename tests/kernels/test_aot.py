"""What the compiler makes of the kernels for cards that are not here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from typing import Any

import pytest

SHARED_LIMIT_KIB = {80: 163, 90: 227, 100: 227, 120: 99}

# A subset that meets each kernel, each way through it and each target; the rest is marked slow.
QUICK = [
    ("inversion", "16@7x7/96", "bfloat16", 90),
    ("inversion", "48@8x8/128", "float32", 90),
    ("anderson of few", "12@16x16/64", "bfloat16", 90),
    ("stage of few", "3@32x32/32", "float32", 90),
    ("inversion of few", "4@14x14/32", "bfloat16", 100),
    ("stage", "16@7x7/96", "float32", 100),
    ("inversion", "12@16x16/64", "bfloat16", 80),
    ("stage of few", "48@8x8/128", "float32", 80),
    ("inversion", "12@16x16/64", "float32", 120),
    ("power", "4@14x14/32", "float32", 90),
]
FOR_MANY = ("stage", "inversion", "anderson")
KERNELS = (*FOR_MANY, *(f"{kernel} of few" for kernel in FOR_MANY), "power")


def compiled(*arguments: str) -> list[dict[str, Any]]:
    """In a process of its own: this one interprets its kernels, that one must compile them."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "codedinv.kernels.aot", "--json", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


@cache
def quick() -> list[dict[str, Any]]:
    """All of QUICK, compiled once in a session."""
    return compiled("--variant", *(":".join(map(str, variant)) for variant in QUICK))


def check(resources: dict[str, Any]) -> None:
    """No spills, shared memory within the card's limit, the tensor cores of its generation."""
    assert resources["stack_bytes"] == resources["local_bytes"] == 0, resources
    assert resources["shared_bytes"] <= SHARED_LIMIT_KIB[resources["arch"]] * 1024, resources
    wanted = {80: {"mma"}, 90: {"wgmma"}, 100: {"tcgen05", "mma"}, 120: {"mma"}}[resources["arch"]]
    assert wanted & resources["tensor_core"].keys(), resources


@pytest.mark.timeout(600)
@pytest.mark.parametrize("variant", QUICK, ids=lambda variant: " ".join(map(str, variant)))
def test_a_variant_fits_its_card(variant: tuple[str, str, str, int]) -> None:
    kernel, stage, dtype, arch = variant
    [found] = [
        resources
        for resources in quick()
        if resources["variant"] == f"{kernel} {stage} {dtype}" and resources["arch"] == arch
    ]
    check(found)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("arch", SHARED_LIMIT_KIB)
@pytest.mark.parametrize("kernel", KERNELS)
def test_every_variant_fits_every_card(kernel: str, arch: int) -> None:
    everything = ("--dtype", "float32", "bfloat16", "float16")
    found = compiled("--kernel", kernel, "--arch", str(arch), *everything)
    assert len(found) >= 12
    for resources in found:
        check(resources)
