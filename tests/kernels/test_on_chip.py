"""The kernels of kernels/cuda, run by an emulator: the same sources, compiled for this CPU."""

from __future__ import annotations

import ctypes
import random
import shutil
import subprocess

import pytest
import torch
from torch import Tensor

from codedinv.kernels import reference
from codedinv.kernels.on_chip_plan import DTYPES, layout_for
from codedinv.kernels.on_chip_shape import Layout
from codedinv.kernels.reference import Block
from codedinv.kernels.shapes import Stage
from codedinv.kernels.testing import (
    ERROR_LIMIT,
    cast,
    draw_blocks,
    draw_images,
    relative_error,
)
from codedinv.kernels.tuning import STAGES
from tests.kernels.emulator import emulate
from tests.kernels.emulator.emulate import Emulated

CPU = torch.device("cpu")
BF16, FP16 = torch.bfloat16, torch.float16

# One of each way through the sources: gathers of few channels and of many, numbers one, two and
# four at a time, tiles that are not full, a last band of one row, a last cluster that is not full.
ALONE = Layout(Stage(3, 6, 5, 16), warps=2)
ONE_CHANNEL = Layout(Stage(1, 5, 9, 32), warps=1, tall=2)
COLUMN = Layout(Stage(4, 7, 1, 16), warps=1)
SEVERAL = Layout(Stage(12, 4, 6, 40), images=2, warps=3)
BANDED = Layout(Stage(3, 10, 6, 32), bands=4, warps=2)
BANDED_MANY = Layout(Stage(6, 5, 4, 16), images=2, bands=2, warps=3)
SPLIT = Layout(Stage(16, 3, 4, 64), images=3, splits=4, shared=True, warps=4)
SPLIT_PAIRS = Layout(Stage(20, 4, 2, 20), splits=2, shared=True, warps=4, tall=2)
BANDED_SHARED = Layout(Stage(5, 6, 5, 48), bands=2, shared=True, warps=4)
# Each is compiled once, for one dtype.
LAYOUTS = {
    ALONE: BF16, ONE_CHANNEL: FP16, COLUMN: BF16, SEVERAL: BF16,
    BANDED: BF16, BANDED_MANY: BF16, SPLIT: BF16, SPLIT_PAIRS: FP16, BANDED_SHARED: FP16,
}  # fmt: skip


def draw(
    layout: Layout, dtype: torch.dtype, batch: int, count: int = 2
) -> tuple[Tensor, list[Block], list[Block]]:
    """Images, and blocks as the kernel gets them and in float64."""
    blocks = cast(draw_blocks(layout.stage, count), dtype, CPU)
    return draw_images(layout.stage, batch).to(dtype), blocks, cast(blocks, torch.float64, CPU)


def check(layout: Layout, dtype: torch.dtype, batch: int, count: int = 2) -> None:
    """Forward and inverse of a layout, against float64."""
    x, blocks, exact = draw(layout, dtype, batch, count)
    emulated = Emulated(blocks, layout, dtype, seed=random.randrange(2**31))
    y = emulated(x)
    assert relative_error(y, reference.residual_blocks(x.double(), exact)) < ERROR_LIMIT[dtype]
    found, iterations, residual = emulated.invert(y, 1e-3)
    expected, counts, _ = reference.invert(y.double(), exact, 1e-3, 100)
    assert relative_error(found, expected) < ERROR_LIMIT[dtype]
    assert bool((residual <= 1e-3).all())
    # Rounding of a step that nearly suffices may cost one iteration, or save it.
    assert int((iterations - counts).abs().max()) <= 1


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_forward_and_inverse_are_the_references(layout: Layout) -> None:
    check(layout, LAYOUTS[layout], 2 * layout.images - 1, 3)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("stage", STAGES, ids=str)
def test_every_stage_is_right_in_every_layout_that_a_batch_gets(
    stage: Stage, dtype: torch.dtype
) -> None:
    for layout in {
        layout
        for batch in (1, 20, 50, 256)
        if isinstance(layout := layout_for(stage, batch, 132, 90, "inversion"), Layout)
    }:
        print(layout)
        check(layout, dtype, layout.images + (layout.images > 1), 2)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_random_layouts_are_right() -> None:
    tried = 0
    while tried < 40:
        stage = Stage(
            random.choice([1, 2, 3, 4, 5, 8, 12, 16, 24, 33]), random.randint(1, 11),
            random.randint(1, 11), random.choice([8, 16, 24, 32, 64, 72]),
        )  # fmt: skip
        cluster = {random.choice(["bands", "splits"]): random.choice([1, 2, 4, 8])}
        layout = Layout(
            stage, images=random.choice([1, 1, 2, 3]), warps=random.randint(1, 5),
            tall=random.choice([1, 2]), shared=random.choice([False, True]), **cluster,
        )  # fmt: skip
        if layout.unfit() is not None:
            continue
        print(layout)
        check(layout, random.choice(DTYPES), random.randint(1, layout.images + 1))
        tried += 1


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_the_host_knows_the_sizes_of_shape_cuh(layout: Layout) -> None:
    sizes = (ctypes.c_int * 4)()
    emulate.library(layout, LAYOUTS[layout]).sizes(sizes)
    assert list(sizes) == [
        layout.shared_weight_bytes, layout.weight_bytes,
        layout.shared_bytes("forward"), layout.shared_bytes("inversion"),
    ]  # fmt: skip


def test_channels_last_and_one_pixel_wide_images_are_read_as_they_lie() -> None:
    x, blocks, exact = draw(BANDED, BF16, 2)
    y = Emulated(blocks, BANDED, BF16)(x.contiguous(memory_format=torch.channels_last))
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert relative_error(y, reference.residual_blocks(x.double(), exact)) < ERROR_LIMIT[BF16]
    x, blocks, exact = draw(COLUMN, BF16, 2)
    y = Emulated(blocks, COLUMN, BF16)(x.transpose(2, 3).contiguous().transpose(2, 3))
    assert relative_error(y, reference.residual_blocks(x.double(), exact)) < ERROR_LIMIT[BF16]


def test_bands_give_the_bits_of_one_block_of_threads() -> None:
    x, blocks, _ = draw(BANDED, BF16, 2)
    whole = Layout(BANDED.stage, warps=3)
    assert torch.equal(Emulated(blocks, BANDED, BF16)(x), Emulated(blocks, whole, BF16)(x))
    banded = Emulated(blocks, BANDED, BF16).invert(x, 1e-3)
    alone = Emulated(blocks, whole, BF16).invert(x, 1e-3)
    assert torch.equal(banded[0], alone[0])
    assert torch.equal(banded[1], alone[1])


@pytest.mark.parametrize("layout", [SEVERAL, BANDED_MANY, SPLIT], ids=str)
def test_the_order_of_warps_decides_nothing(layout: Layout) -> None:
    x, blocks, _ = draw(layout, BF16, layout.images)
    answers = []
    for seed in range(4):
        emulated = Emulated(blocks, layout, BF16, seed)
        answers.append((emulated(x), *emulated.invert(x, 1e-3)))
    for other in answers[1:]:
        assert all(map(torch.equal, answers[0], other))


@pytest.mark.parametrize("layout", [SEVERAL, SPLIT], ids=str)
def test_an_image_does_not_depend_on_its_neighbours(layout: Layout) -> None:
    """Frozen once done: images of very different sizes take different counts."""
    y, blocks, _ = draw(layout, BF16, layout.images)
    y = y * torch.tensor([1.0, 100.0, 1e-3])[: layout.images, None, None, None].to(BF16)
    emulated = Emulated(blocks, layout, BF16)
    together = emulated.invert(y, 1e-3)
    for image in range(layout.images):
        alone = emulated.invert(y[image : image + 1], 1e-3)
        for ours, its in zip(together, alone, strict=True):
            assert torch.equal(ours[image], its[0])


@pytest.mark.parametrize("layout", [SEVERAL, BANDED, SPLIT], ids=str)
def test_not_a_number_fails_its_own_image_only(layout: Layout) -> None:
    y, blocks, _ = draw(layout, BF16, 2)
    emulated = Emulated(blocks, layout, BF16)
    clean = emulated.invert(y, 1e-3, 7)
    y[1, 0, 0, 0] = float("nan")
    _, iterations, residual = found = emulated.invert(y, 1e-3, 7)
    for ours, before in zip(found, clean, strict=True):
        assert torch.equal(ours[0], before[0])
    # The last block fails at the cap, and the one before it is not tried.
    assert iterations[1].tolist() == [0, 7]
    assert residual[1].tolist() == [0, float("inf")]
    assert emulated(y)[1].isnan().any()


def test_what_fails_a_block_is_left_as_it_is() -> None:
    y, blocks, exact = draw(SEVERAL, BF16, 3)
    found, iterations, residual = Emulated(blocks, SEVERAL, BF16).invert(y, 1e-3, 1)
    expected, counts, last = reference.invert(y.double(), exact, 1e-3, 1)
    assert relative_error(found, expected) < ERROR_LIMIT[BF16]
    assert torch.equal(iterations, counts)
    assert torch.allclose(residual, last, rtol=0.05)
    assert bool((residual[:, 0] == 0).all())


def test_a_block_that_expands_does_not_converge() -> None:
    y, blocks, _ = draw(ALONE, BF16, 1)
    steep: list[Block] = [
        ((40 * w1, b1, w2, b2, 40 * w3, b3), leading)
        for (w1, b1, w2, b2, w3, b3), leading in blocks
    ]
    _, iterations, residual = Emulated(steep, ALONE, BF16).invert(y, 1e-3, 9)
    assert iterations.tolist() == [[0, 9]]
    assert float(residual[0, 1]) > 1e-3


@pytest.mark.parametrize("scale", [1e-30, 1e25])
def test_images_of_any_size_converge(scale: float) -> None:
    """Without biases, whose size would count beside that of small images."""
    y, blocks, _ = draw(ALONE, BF16, 1)
    plain: list[Block] = [
        ((w1, 0 * b1, w2, 0 * b2, w3, 0 * b3), leading)
        for (w1, b1, w2, b2, w3, b3), leading in blocks
    ]
    exact = cast(plain, torch.float64, CPU)
    y = (y.double() * scale).to(BF16)
    found, _, residual = Emulated(plain, ALONE, BF16).invert(y, 1e-3)
    expected = reference.invert(y.double(), exact, 1e-6, 100)[0]
    assert bool((residual <= 1e-3).all())
    assert relative_error(found, expected) < ERROR_LIMIT[BF16]


def sanitized(layout: Layout, *flags: str) -> subprocess.CompletedProcess[str]:
    """Both kernels on random weights, watched."""
    program = emulate.build(layout, LAYOUTS[layout], "sanitized.cpp", ("-O1", "-g", *flags))
    # ThreadSanitizer does not find its place where addresses are too random.
    unrandom = ["setarch", "-R"] if shutil.which("setarch") else []
    return subprocess.run([*unrandom, str(program)], capture_output=True, text=True, check=False)


def watched(*everyday: Layout) -> list[object]:
    """All layouts, those that are not named marked as slow."""
    return [
        layout if layout in everyday else pytest.param(layout, marks=pytest.mark.slow)
        for layout in LAYOUTS
    ]


@pytest.mark.parametrize("layout", watched(BANDED, SPLIT), ids=str)
def test_threads_meet_between_a_store_and_anothers_load(layout: Layout) -> None:
    found = sanitized(layout, "-fsanitize=thread")
    assert found.returncode == 0, found.stdout + found.stderr[:4000]


@pytest.mark.parametrize("layout", watched(SEVERAL, SPLIT), ids=str)
def test_no_access_is_out_of_bounds_or_misaligned(layout: Layout) -> None:
    found = sanitized(layout, "-fsanitize=address,alignment", "-fno-sanitize-recover")
    assert found.returncode == 0, found.stdout + found.stderr[:4000]


def test_the_sanitizer_sees_a_meeting_that_is_left_out() -> None:
    found = sanitized(ALONE, "-fsanitize=thread", "-DFORGETFUL")
    assert "data race" in found.stderr
    assert "branch_at" in found.stderr
