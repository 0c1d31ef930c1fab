"""Counting machine code: loops found, weighted, and mapped to the kernels' own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from codedinv.kernels.shapes import Stage

ROOT = Path(__file__).resolve().parents[2]
RECEIPT = ROOT / "benchmarks" / "receipts" / "machine-code-sm-90.json"

# As nvcc makes it of a loop of 8 tiles around one of k; the spin of a barrier is out of line.
SASS = """
	.section	.text.kernel,"ax",@progbits
kernel:
.text.kernel:
	//## File "kernel.cu", line 3
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/               @P0 EXIT ;
.L_x_0:
	//## File "kernel.cu", line 5
        /*0020*/                   LDG.E.128 R4, desc[UR4][R2.64] ;
.L_x_1:
	//## File "kernel.cu", line 7
        /*0030*/                   LDGSTS.E.BYPASS.128 [R5], desc[UR4][R6.64] ;
        /*0040*/                   HGMMA.64x64x16.F32.BF16 R24, R72, gdesc[UR12].tnspB, R24 ;
        /*0050*/                   HMMA.16816.F32.BF16 R8, R4, R6, R8 ;
        /*0060*/               @P1 BRA `(.L_x_1) ;
        /*0070*/                   STS.U16 [R3], R8 ;
        /*0080*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;
        /*0090*/              @!P2 BRA P3, `(.L_x_0) ;
        /*00a0*/                   STG.E.64 desc[UR4][R2.64], R8 ;
        /*00b0*/                   EXIT ;
.L_x_2:
        /*00c0*/                   BRA `(.L_x_2);
"""


@pytest.fixture(autouse=True)
def _benchmarks_can_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")


def test_instructions_are_weighted_by_the_trips_of_the_loops_around_them() -> None:
    from machine import sass

    code = sass.read(SASS)
    outer, inner = code.loops
    assert (outer.depth, inner.depth) == (0, 1)
    assert inner.lines.most_common(1)[0][0] == ("kernel.cu", 7)
    trips = {outer.number: 8, inner.number: 36}
    found = sass.counts(code, lambda loop: trips[loop.number])
    assert found["matrix"] == 2 * 8 * 36
    # Four warps share an HGMMA; an HMMA is one warp's.
    assert found["macs"] == 8 * 36 * (64 * 64 * 16 // 4 + 16 * 8 * 16)
    assert found["bytes loaded"] == 8 * 32 * 16
    assert found["bytes copied"] == 8 * 36 * 32 * 16
    assert found["bytes stored"] == 32 * 8
    assert found["bytes shared"] == 8 * 32 * 2 + 8 * 36 * 2 * 16 * 64 // 4
    assert found["barrier"] == 8
    # What no path leads to is not counted.
    assert found["issued"] == 2 + 8 * (1 + 4 * 36 + 3) + 2 + 1


def test_text_without_instructions_is_refused() -> None:
    from machine import sass

    with pytest.raises(ValueError, match="expected SASS of kernel other, got no instructions"):
        sass.read(SASS, "other")


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("kernel", "stage", "dtype"),
    [
        ("stage", Stage(12, 16, 16, 64), "bfloat16"),
        ("inversion of few", Stage(48, 8, 8, 128), "float32"),
        pytest.param("inversion", Stage(3, 32, 32, 32), "float32", marks=pytest.mark.slow),
        pytest.param("stage of few", Stage(3, 32, 32, 32), "bfloat16", marks=pytest.mark.slow),
        pytest.param("inversion", Stage(48, 8, 8, 128), "bfloat16", marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_the_products_of_machine_code_are_those_of_the_plan(
    kernel: str, stage: Stage, dtype: str
) -> None:
    """Every loop with matrix instructions is found, and has the trips that its source says."""
    import torch

    from codedinv.kernels import tuning
    from codedinv.kernels.launch import sizes_of

    few = kernel.endswith(" of few")
    card, name = tuning.Card("sm_90", 132, 90), kernel.removesuffix(" of few")
    tiles = tuning.stage_tuning(name, stage, getattr(torch, dtype), 1 if few else 1024, card)
    sizes = sizes_of(name, stage, getattr(torch, dtype), tiles, False)
    columns = -(-9 * sizes.C // sizes.BLOCK_N) * sizes.BLOCK_N
    rows = -(-9 * sizes.CP // sizes.BLOCK_K) * sizes.BLOCK_K
    products = 6 if dtype == "float32" else 1
    expected = products * sizes.STRIDE * sizes.N * (rows + sizes.N + columns)
    found = counted(f"{kernel}:{stage}:{dtype}")
    step = found["block" if name == "stage" else "iteration"]
    assert step["macs"] * found["warps"] == expected


def counted(variant: str) -> dict[str, Any]:
    """In a process that compiles kernels; this one interprets them."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    paths = [str(ROOT), str(ROOT / "benchmarks")]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "machine.kernels", variant],
        env=environment | {"PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def test_predictions_of_the_receipt_are_what_the_model_makes_of_its_counts() -> None:
    from machine.predictions import predictions

    receipt = json.loads(RECEIPT.read_text())
    counts = {row["variant"]: row for row in receipt["counts"]}
    found = [prediction.row() for prediction in predictions(counts, receipt["iterations"])]
    assert found == receipt["bars"]


@pytest.mark.parametrize(
    ("batch", "images", "bands", "warps", "programs", "used", "waves"),
    [
        (256, 1, 1, 4, 2, 132, 1),
        (256, 2, 1, 8, 1, 128, 1),
        (1, 1, 16, 4, 1, 16, 1),
        (1024, 1, 1, 4, 2, 132, 4),
        (1024, 1, 1, 8, 1, 132, 8),
    ],
)
def test_the_busiest_multiprocessor_decides(
    batch: int, images: int, bands: int, warps: int, programs: int, used: int, waves: int
) -> None:
    from machine.model import residence

    where = residence(batch, images, bands, warps, registers=250)
    assert (where.programs, where.used, where.waves) == (programs, used, waves)
