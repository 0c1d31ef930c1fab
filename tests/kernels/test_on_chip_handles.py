"""Prepared blocks on the kernels of kernels/cuda: when they run, through which operators, compiled
with what. The card is an emulated one."""

from __future__ import annotations

import ctypes
import json
import pwd
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from codedinv.kernels import (
    on_chip,
    on_chip_compile,
    on_chip_driver,
    on_chip_packing,
    prepare,
    reference,
    tuning,
    versions,
)
from codedinv.kernels.on_chip_launch import Arguments, arguments_of
from codedinv.kernels.on_chip_plan import layout_for
from codedinv.kernels.on_chip_shape import Layout
from codedinv.kernels.shapes import Stage
from codedinv.kernels.testing import cast, draw_blocks, draw_images, relative_error
from codedinv.kernels.tuning import STAGES, Card
from tests.kernels.emulator import emulate

CPU, BF16 = torch.device("cpu"), torch.bfloat16
STAGE = Stage(4, 4, 4, 16)
CARD = Card("NVIDIA H200", 132, 90)

Launches = list[tuple[str, Layout]]


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> Launches:
    """Makes the CPU an emulated H200; what is launched on it."""
    launched: Launches = []

    def kernel_of(
        name: str, layout: Layout, dtype: torch.dtype, _: torch.device
    ) -> Callable[[Arguments, int], None]:
        def launch(arguments: Arguments, clusters: int) -> None:
            launched.append((name, layout))
            emulate.launch(name, layout, dtype, arguments, clusters)

        return launch

    on_chip.planned.cache_clear()
    monkeypatch.setattr(on_chip, "unsupported_on_chip", lambda *_: None)
    monkeypatch.setattr(on_chip, "card_of", lambda _: CARD)
    monkeypatch.setattr(on_chip_driver, "kernel_of", kernel_of)
    return launched


def draw(batch: int) -> tuple[torch.Tensor, list[Any]]:
    return draw_images(STAGE, batch).to(BF16), cast(draw_blocks(STAGE, 2), BF16, CPU)


def test_a_handle_runs_on_chip_where_that_is_demanded(launches: Launches) -> None:
    x, blocks = draw(2)
    handle = prepare(blocks, on_chip=True)
    exact = cast(blocks, torch.float64, CPU)
    y = handle(x)
    assert relative_error(y, reference.residual_blocks(x.double(), exact)) < 1e-2
    found, iterations, residual = handle.invert(y, tol=1e-3)
    assert relative_error(found, x) < 1e-2
    assert iterations.shape == residual.shape == (2, 2)
    assert [name for name, _ in launches] == ["forward", "inversion"]


def test_an_inverse_on_chip_keeps_to_what_the_dtype_can_reach(launches: Launches) -> None:
    x, blocks = draw(1)
    _, _, residual = prepare(blocks, on_chip=True).invert(x, tol=1e-7)
    assert bool((residual <= 5e-4).all())
    assert launches


@pytest.fixture
def measure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[Any], None]]:
    """Gives measured.json entries for the emulated card."""
    measured = tmp_path / "measured.json"
    monkeypatch.setattr(tuning, "MEASURED", measured)

    def write(entries: Any) -> None:
        measured.write_text(json.dumps({CARD.name: entries}))
        tuning._measured.cache_clear()

    write({})
    yield write
    tuning._measured.cache_clear()


def faster_forward() -> dict[str, Any]:
    """An entry: two images are faster forward."""
    times = [{"batch": 2, "ours": 1.0, "other": 2.0}]
    found = {"times": times, "versions": versions.installed()}
    return {f"on_chip forward {STAGE} bfloat16": found}


def test_unless_demanded_only_what_was_measured_runs_on_chip(
    launches: Launches, measure: Callable[[Any], None]
) -> None:
    x, blocks = draw(2)
    prepare(blocks)(x)
    assert not launches
    measure(faster_forward())
    handle = prepare(blocks)
    handle(x)
    assert [name for name, _ in launches] == ["forward"]
    handle(x[:1])
    handle.invert(x, tol=1e-2)
    prepare(blocks, on_chip=False)(x)
    assert len(launches) == 1


@pytest.mark.parametrize(
    "error",
    [
        on_chip_compile.CompileError("nvrtcCompileProgram: no builtins"),
        on_chip_driver.DriverError("cuModuleLoadData: no kernel image"),
        OSError("libcuda.so.1: cannot open shared object file"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_was_measured_and_cannot_be_loaded_costs_nobody_an_answer(
    launches: Launches,
    measure: Callable[[Any], None],
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    tried = []

    def kernel_of(*what: object) -> None:
        tried.append(what)
        raise error

    measure(faster_forward())
    monkeypatch.setattr(on_chip_driver, "kernel_of", kernel_of)
    x, blocks = draw(2)
    handle = prepare(blocks)
    exact = cast(blocks, torch.float64, CPU)
    for _ in range(2):
        assert relative_error(handle(x), reference.residual_blocks(x.double(), exact)) < 1e-2
    assert len(tried) == 1
    with pytest.raises(type(error)):
        prepare(blocks, on_chip=True)(x)


def test_what_cannot_be_loaded_within_a_capture_can_after_it(
    launches: Launches, measure: Callable[[Any], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def kernel_of(*_: object) -> None:
        raise on_chip_driver.DriverError("cuModuleLoadData: operation not permitted")

    measure(faster_forward())
    x, blocks = draw(2)
    handle = prepare(blocks)
    with monkeypatch.context() as within:
        within.setattr(on_chip_driver, "kernel_of", kernel_of)
        within.setattr(on_chip.streams, "capturing", lambda _: True)
        handle(x)
    assert not launches
    handle(x)
    assert len(launches) == 1


def test_what_is_demanded_and_cannot_be_says_why(launches: Launches) -> None:
    _, blocks = draw(1)
    handle = prepare(blocks, on_chip=True)
    with pytest.raises(ValueError, match="anderson: expected False"):
        handle.invert(torch.zeros(1, 4, 4, 4, dtype=BF16), anderson=True)
    with pytest.raises(ValueError, match=r"on_chip: 4@400x400/16 does not fit 227 KiB"):
        handle(torch.zeros(1, 4, 400, 400, dtype=BF16))
    assert handle(torch.zeros(0, 4, 4, 4, dtype=BF16)).shape == (0, 4, 4, 4)


def test_where_there_is_no_card_a_demand_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    _, blocks = draw(1)
    with pytest.raises(ValueError, match=r"on_chip: device cpu \(they run on cuda\)"):
        prepare(blocks, "cpu", on_chip=True)
    with pytest.raises(ValueError, match=r"on_chip: dtype torch\.float32"):
        prepare(blocks, "cpu", torch.float32, on_chip=True)
    monkeypatch.setattr(on_chip, "nvrtc", lambda: None)
    cuda = torch.device("cuda", 0)
    assert "NVRTC was not found" in str(on_chip.unsupported_on_chip(cuda, BF16))


def test_warming_up_launches_each_layout_once(launches: Launches) -> None:
    _, blocks = draw(1)
    handle = prepare(blocks, on_chip=True)
    expected = {
        layout_for(STAGE, batch, 132, 90, "forward") for batch in (1, 2, 20, 40, 100)
    }  # fmt: skip
    assert handle.warm_up(4, 4, batches=(1, 2, 20, 40, 100), inverse=False) == len(expected)
    assert {layout for _, layout in launches} == expected


def test_the_operators_keep_torchs_contracts(launches: Launches) -> None:
    x, blocks = draw(1)
    handle = prepare(blocks, on_chip=True)._on_chip
    assert handle is not None
    packed = handle._packs, handle._leading, handle.hidden
    tests = ("test_schema", "test_faketensor")
    forward, inverse = torch.ops.codedinv.on_chip_forward, torch.ops.codedinv.on_chip_inverse
    torch.library.opcheck(forward.default, (x, *packed), test_utils=tests)
    torch.library.opcheck(inverse.default, (x, *packed, 1e-3, 50), test_utils=tests)
    assert len(launches) > 1


def test_every_stage_has_a_layout_on_every_card_that_has_clusters() -> None:
    for stage in STAGES:
        for batch in (1, 7, 64, 132, 256, 1024):
            for kernel in ("forward", "inversion"):
                for capability in (90, 100):
                    layout = layout_for(stage, batch, 132, capability, kernel)
                    assert isinstance(layout, Layout)
                    assert layout.unfit() is None
                    assert layout.shared_bytes(kernel) <= 227 << 10
                    assert 32 * layout.warps <= 512


@pytest.mark.parametrize("stage", [Stage(16, 1, 1, 64), Stage(3, 2, 2, 16)], ids=str)
@pytest.mark.parametrize("capability", [80, 90, 120])
def test_however_many_tiny_images_there_are_a_lane_speaks_for_each(
    stage: Stage, capability: int
) -> None:
    for batch in (1056, 8448, 2**20):
        layout = layout_for(stage, batch, 132, capability, "forward")
        assert isinstance(layout, Layout)
        assert layout.unfit() is None


@pytest.mark.parametrize("max_iter", [2**31, sys.maxsize])
def test_as_many_iterations_as_one_likes_are_not_none(launches: Launches, max_iter: int) -> None:
    x, blocks = draw(1)
    found, iterations, residual = prepare(blocks, on_chip=True).invert(x, 1e-2, max_iter)
    exact = cast(blocks, torch.float64, CPU)
    assert bool((iterations > 0).all())
    assert relative_error(reference.residual_blocks(found.double(), exact), x) < 5e-2
    assert bool((residual > 0).all())


def test_cards_that_cannot_hold_a_stage_refuse_it() -> None:
    wide, narrow = Stage(48, 8, 8, 128), Stage(3, 32, 32, 32)
    assert "does not fit 163 KiB" in str(layout_for(wide, 1, 108, 80, "forward"))
    assert isinstance(layout_for(narrow, 1, 108, 80, "inversion"), Layout)
    assert "compute capability 7.5" in str(layout_for(narrow, 1, 40, 75, "forward"))


# What cannot be done in a thread without a context, and what the driver says then.
NEED_A_CONTEXT = {"cuModuleLoadData", "cuModuleGetFunction", "cuFuncSetAttribute", "cuLaunchKernel"}
INVALID_CONTEXT = 201


class Driver:
    """The CUDA driver, as it is called. A thread begins without a context."""

    def __init__(self, refused: str = "") -> None:
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.refused = refused
        self.current = threading.local()

    def __getattr__(self, name: str) -> Callable[..., int]:
        def call(*arguments: Any) -> int:
            self.calls.append((name, arguments))
            if name == "cuCtxSetCurrent":
                self.current.context = arguments[0]
            if name in NEED_A_CONTEXT and not hasattr(self.current, "context"):
                return INVALID_CONTEXT
            if name == "cuLaunchKernel":
                pointer = ctypes.cast(arguments[9][0], ctypes.POINTER(Arguments))
                self.batch = pointer.contents.batch
            return int(name == self.refused)

        return call


class Context:
    """Stands for torch.cuda.device."""

    def __init__(self, _: torch.device) -> None: ...
    def __enter__(self) -> None: ...
    def __exit__(self, *_: object) -> None: ...


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    found = Driver()
    monkeypatch.setattr(on_chip_driver, "_driver", lambda: found)
    monkeypatch.setattr(on_chip_driver, "cubin", lambda *_: b"cubin")
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(torch.cuda, "device", Context)
    stream = type("Stream", (), {"cuda_stream": 77})
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    return found


def test_a_launch_has_as_many_blocks_as_its_clusters(driver: Driver) -> None:
    layout = Layout(Stage(16, 4, 4, 64), splits=4, shared=True, warps=8)
    kernel = on_chip_driver.Kernel("forward", layout, BF16, torch.device("cuda", 0))
    x = torch.zeros(3, 16, 4, 4, dtype=BF16)
    kernel(arguments_of(x, x, x, torch.zeros(3, dtype=torch.int32)), 3)
    names = [name for name, _ in driver.calls]
    assert names == ["cuDeviceGet", "cuDevicePrimaryCtxRetain", "cuCtxSetCurrent",
                     "cuModuleLoadData", "cuModuleGetFunction", "cuFuncSetAttribute",
                     "cuCtxSetCurrent", "cuLaunchKernel"]  # fmt: skip
    _, *grid_and_more = driver.calls[-1][1]
    assert grid_and_more[:7] == [12, 1, 1, 256, 1, 1, layout.shared_bytes("forward")]
    assert grid_and_more[7].value == 77
    assert driver.batch == 3


def test_a_thread_that_never_called_cuda_can_launch(driver: Driver) -> None:
    kernel = on_chip_driver.Kernel("forward", Layout(STAGE), BF16, torch.device("cuda", 0))
    x = torch.zeros(3, 4, 4, 4, dtype=BF16)
    arguments = arguments_of(x, x, x, torch.zeros(3, dtype=torch.int32))
    with ThreadPoolExecutor(1) as pool:
        pool.submit(kernel, arguments, 3).result()
    assert driver.batch == 3


def test_a_driver_that_refuses_is_heard(driver: Driver) -> None:
    driver.refused = "cuModuleLoadData"
    with pytest.raises(on_chip_driver.DriverError, match="cuModuleLoadData: 1"):
        on_chip_driver.Kernel("forward", Layout(STAGE), BF16, torch.device("cuda", 0))


@pytest.mark.parametrize(("cuda", "major"), [("13.0", 13), ("12.8", 12)])
def test_nvrtc_is_that_of_torchs_cuda(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cuda: str, major: int
) -> None:
    for name in ("cu13/lib/libnvrtc.so.13", "cuda_nvrtc/lib/libnvrtc.so.12"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
        (tmp_path / name).with_name(f"libnvrtc-builtins.so.{cuda}").touch()
    wheels = type("Wheels", (), {"submodule_search_locations": [str(tmp_path)]})
    monkeypatch.setattr(on_chip_compile, "find_spec", lambda _: wheels)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    assert on_chip_compile._candidates()[0].endswith(f"/libnvrtc.so.{major}")


def test_nvrtc_that_only_the_loader_finds_is_tried_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_chip_compile, "_installed", lambda: iter(()))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert on_chip_compile._candidates() == ["libnvrtc.so.13"]


def test_without_nvrtc_compiling_says_where_it_comes_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_chip_compile, "nvrtc", lambda: None)
    with pytest.raises(on_chip_compile.CompileError, match="comes with torch for CUDA"):
        on_chip_compile.cubin(Layout(STAGE), BF16, 90)


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[str, ...]]:
    """Options of each compilation, of sources in tmp_path / "cuda", kept in tmp_path / "cache"."""
    options: list[tuple[str, ...]] = []

    class Nvrtc:
        def nvrtcVersion(self, *_: object) -> int:
            return 0

        def __getattr__(self, name: str) -> Any:
            return type("Function", (), {})()

    def compile_(_: object, given: tuple[str, ...]) -> bytes:
        options.append(given)
        return b"\x7fELF"

    sources = tmp_path / "cuda"
    sources.mkdir()
    (sources / "stage.cu").write_text("one")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(on_chip_compile, "SOURCES", sources)
    monkeypatch.setattr(on_chip_compile, "nvrtc", Nvrtc)
    monkeypatch.setattr(on_chip_compile, "_compile", compile_)
    return options


def test_what_was_compiled_is_found_again_and_lost_with_its_sources(
    compiled: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for _ in range(2):
        assert on_chip_compile.cubin(Layout(STAGE), BF16, 90) == b"\x7fELF"
    assert len(compiled) == 1
    on_chip_compile.cubin(Layout(STAGE), BF16, 100)
    on_chip_compile.cubin(Layout(STAGE), torch.float16, 90)
    (tmp_path / "cuda" / "stage.cu").write_text("two")
    on_chip_compile.cubin(Layout(STAGE), BF16, 90)
    assert len(compiled) == 4
    # A folder that cannot be written costs a compilation, not an answer.
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cuda" / "stage.cu"))
    assert on_chip_compile.cubin(Layout(STAGE), BF16, 90) == b"\x7fELF"


@pytest.mark.parametrize("left", [b"", b"\x7fELF", bytes(36)], ids=["none", "short", "zeros"])
def test_a_kept_kernel_that_was_spoilt_is_compiled_anew(
    compiled: list[tuple[str, ...]], tmp_path: Path, left: bytes
) -> None:
    on_chip_compile.cubin(Layout(STAGE), BF16, 90)
    (kept,) = tmp_path.glob("cache/codedinv/on_chip/*")
    kept.write_bytes(left)
    for _ in range(2):
        assert on_chip_compile.cubin(Layout(STAGE), BF16, 90) == b"\x7fELF"
    assert len(compiled) == 2


def test_a_full_disk_gets_no_fuller(
    compiled: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def replace(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(on_chip_compile.os, "replace", replace)
    assert on_chip_compile.cubin(Layout(STAGE), BF16, 90) == b"\x7fELF"
    assert compiled
    assert not list(tmp_path.glob("cache/codedinv/on_chip/*"))


def test_a_user_without_a_home_compiles_anew(
    compiled: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def nobody(_: int) -> None:
        raise KeyError

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    assert on_chip_compile.cubin(Layout(STAGE), BF16, 90) == b"\x7fELF"
    assert compiled


@pytest.mark.skipif(on_chip_compile.nvrtc() is None, reason="NVRTC is not installed")
def test_nvrtc_compiles_the_sources(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for layout in (
        Layout(STAGE, warps=2),
        Layout(Stage(16, 4, 4, 64), splits=4, shared=True, warps=8),
    ):
        assert on_chip_compile.cubin(layout, BF16, 90).startswith(b"\x7fELF")
    with pytest.raises(on_chip_compile.CompileError, match="a band without rows"):
        on_chip_compile.cubin(Layout(Stage(4, 16, 4, 16), bands=5), BF16, 90)


def test_packed_weights_are_fragments_in_order_of_use() -> None:
    """Lane 4 g + t of a tile has rows 2 t, 2 t + 1, 2 t + 8, 2 t + 9 of its column g."""
    weight = torch.arange(32 * 16, dtype=torch.float64).reshape(1, 32, 16)
    packed = on_chip_packing._fragments(weight, torch.float64)
    assert packed.shape == (1, 2, 2, 8, 4, 2, 2)
    tile, step, g, t = 1, 1, 5, 3
    rows = 16 * step + torch.tensor([2 * t, 2 * t + 1, 2 * t + 8, 2 * t + 9])
    assert torch.equal(packed[0, tile, step, g, t].flatten(), weight[0, rows, 8 * tile + g])
