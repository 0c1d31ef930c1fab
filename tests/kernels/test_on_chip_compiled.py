"""What nvcc makes of kernels/cuda for cards that are not here."""

from __future__ import annotations

import re
import shutil
import subprocess
from itertools import product
from pathlib import Path

import pytest
import torch

from codedinv.kernels.on_chip_compile import MAIN, SOURCES
from codedinv.kernels.on_chip_plan import DTYPES, SHARED_BYTES, layout_for
from codedinv.kernels.on_chip_shape import Layout
from codedinv.kernels.shapes import Stage
from codedinv.kernels.tuning import STAGES

BF16 = torch.bfloat16
# Of each way to share an image, the layout with most registers or most shared memory.
QUICK = [
    (Stage(12, 16, 16, 64), 256, BF16, 90),
    (Stage(3, 32, 32, 32), 1, torch.float16, 90),
    (Stage(48, 8, 8, 128), 256, BF16, 90),
]
REGISTER_FILE = 65536

pytestmark = pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not on PATH")


def check(
    layout: Layout, kernels: set[str], dtype: torch.dtype, capability: int, folder: Path
) -> None:
    """Compiles without spills or warnings; its registers, and the shared memory of the kernels it
    was chosen for, fit the card."""
    command = [
        "nvcc", f"-arch=sm_{capability}", "-std=c++17", "-Werror", "all-warnings", "-Xptxas", "-v",
        "-cubin", "-o", str(folder / "stage.cubin"), *layout.defines(dtype), str(SOURCES / MAIN),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said = done.stdout + done.stderr
    assert set(re.findall(r"(\d+) bytes (?:stack frame|spill)", said)) == {"0"}, said
    registers = [int(number) for number in re.findall(r"Used (\d+) registers", said)]
    assert len(registers) == 2
    # They are given out by eights.
    assert all(-(-number // 8) * 8 * 32 * layout.warps <= REGISTER_FILE for number in registers)
    for kernel in kernels:
        assert layout.shared_bytes(kernel) <= SHARED_BYTES[capability]


def name(case: tuple[Stage, int, torch.dtype, int]) -> str:
    stage, batch, dtype, capability = case
    return f"{stage} {batch} {dtype} sm_{capability}"


@pytest.mark.parametrize("case", QUICK, ids=name)
def test_a_layout_fits_its_card(case: tuple[Stage, int, torch.dtype, int], tmp_path: Path) -> None:
    stage, batch, dtype, capability = case
    layout = layout_for(stage, batch, 132, capability, "inversion")
    assert isinstance(layout, Layout)
    check(layout, {"inversion"}, dtype, capability, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("capability", [80, 90, 100, 120])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_layout_fits_its_card(dtype: torch.dtype, capability: int, tmp_path: Path) -> None:
    layouts: dict[Layout, set[str]] = {}
    for stage, batch, kernel in product(STAGES, (1, 20, 50, 256), ("forward", "inversion")):
        layout = layout_for(stage, batch, 132, capability, kernel)
        if isinstance(layout, Layout):
            layouts.setdefault(layout, set()).add(kernel)
    for layout, kernels in layouts.items():
        print(layout)
        check(layout, kernels, dtype, capability, tmp_path)
