"""Several programs sharing an image, each a band of rows, that wait for each other."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import codedinv
from codedinv.kernels import reference, tuning
from codedinv.kernels.packing import pack
from codedinv.kernels.testing import DEVICE, ERROR_LIMIT, cast, draw_blocks, draw_images
from codedinv.kernels.testing import relative_error as error_of
from codedinv.kernels.tuning import Stage

# Three bands of a 7x7 image: 3, 3 and 1 rows.
STAGE = Stage(4, 7, 7, 32)
BANDS = 3
SCRATCH = 5


def tiles(dtype: torch.dtype) -> tuning.StageTuning:
    return tuning.default_stage_tuning(STAGE, dtype, bands=BANDS, few=True)


def run_together(
    folder: Path, kernel: str, x: Tensor, blocks: list[reference.Block], **options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """The launch's programs at once: on a card, or else one process each. Returns out, iterations,
    residual."""
    from codedinv.kernels.inversion import run_inversion
    from codedinv.kernels.residual import run_stage

    batch, count = x.shape[0], len(blocks)
    if DEVICE.type == "cuda":
        out = torch.empty_like(x)
        iterations = torch.empty(batch, count, dtype=torch.int32, device=DEVICE)
        residual = torch.empty(batch, count, device=DEVICE)
        packed = pack(blocks, x.dtype)
        if kernel == "stage":
            run_stage(x, out, packed, tiles(x.dtype))
        else:
            run_inversion(
                x, out, iterations, residual, packed,
                options["tol"], 100, options["anderson"], tiles(x.dtype),
            )  # fmt: skip
        return out, iterations, residual
    groups = min(batch, 2)  # the interpreter's grid has two groups; each takes every second image
    job = {
        "kernel": kernel, "x": x, "packed": pack(blocks, x.dtype), "tuning": tiles(x.dtype),
        "programs": groups * BANDS, **options,
    }  # fmt: skip
    torch.save(job, folder / "job.pt")
    for name in [*(f"scratch{i}" for i in range(SCRATCH)), "out", "iterations", "residual"]:
        # NaN wherever a float is read that nobody wrote.
        (folder / name).write_bytes(b"\xff" * (1 << 20))
    (folder / "counters").write_bytes(bytes(1 << 10))
    script = Path(__file__).with_name("one_program.py")
    command = [sys.executable, "-W", "ignore", str(script), str(folder)]
    # A script looks for modules beside itself, not in the working directory as this process may.
    environment = {**os.environ, "PYTHONPATH": str(Path(codedinv.__file__).parents[1])}
    programs = [
        subprocess.Popen([*command, str(rank)], stderr=subprocess.PIPE, text=True, env=environment)
        for rank in range(groups * BANDS)
    ]
    try:
        for program in programs:
            _, errors = program.communicate(timeout=240)
            assert program.returncode == 0, errors
    finally:
        for program in programs:
            program.kill()
            program.wait()

    # As the next launch needs them: whoever leaves last resets them.
    assert not any((folder / "counters").read_bytes())

    def read(name: str, size: int, dtype: torch.dtype) -> Tensor:
        return torch.from_file(str(folder / name), size=size, dtype=dtype)

    return (
        read("out", x.numel(), x.dtype).view(x.shape),
        read("iterations", batch * count, torch.int32).view(batch, count),
        read("residual", batch * count, torch.float32).view(batch, count),
    )


@pytest.mark.timeout(300)
def test_bands_of_a_forward_meet_without_a_seam(tmp_path: Path) -> None:
    blocks = cast(draw_blocks(STAGE, 3), torch.float32)
    x = draw_images(STAGE, 1).to(DEVICE, torch.float32)
    y, _, _ = run_together(tmp_path, "stage", x, blocks)
    assert error_of(y, reference.residual_blocks(x.double(), cast(blocks, torch.float64))) < 1e-5


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("dtype", "anderson", "batch"),
    [
        (torch.float32, False, 1),
        pytest.param(torch.bfloat16, True, 3, marks=pytest.mark.slow),
        pytest.param(torch.float32, True, 1, marks=pytest.mark.slow),
    ],
)
def test_bands_agree_when_an_image_is_inverted(
    tmp_path: Path, dtype: torch.dtype, anderson: bool, batch: int
) -> None:
    blocks = cast(draw_blocks(STAGE, 2), dtype)
    y = draw_images(STAGE, batch).to(DEVICE, dtype)
    x, iterations, residual = run_together(
        tmp_path, "inversion", y, blocks, tol=1e-3, anderson=anderson
    )
    exact = cast(blocks, torch.float64)
    expected, steps, _ = reference.invert(y.double(), exact, 1e-3, 100, anderson)
    assert error_of(x, expected) < max(ERROR_LIMIT[dtype], 3e-3)
    assert (iterations - steps).abs().max() <= 1
    assert (residual <= 1e-3).all()
