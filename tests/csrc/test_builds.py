"""C++ builds other than the two that `make test` runs."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def build(folder: Path, *options: str) -> None:
    """Configures and builds the C++ tests in `folder`."""
    cmake = shutil.which("cmake") or pytest.fail("cmake is a requirement of the dev extra")
    subprocess.run([cmake, "-S", str(ROOT), "-B", str(folder), *options], check=True)
    subprocess.run([cmake, "--build", str(folder), "--parallel"], check=True)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_machine_without_x86_variants_passes_with_the_baseline_alone(tmp_path: Path) -> None:
    build(tmp_path, "-DCODEDINV_X86_VARIANTS=OFF")
    done = subprocess.run(
        [str(tmp_path / "csrc" / "tests" / "axpy_test")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "avx" not in done.stdout
    subprocess.run([str(tmp_path / "csrc" / "tests" / "decoder_test")], check=True)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_aarch64_compiles(tmp_path: Path) -> None:
    compiler = shutil.which("aarch64-linux-gnu-g++")
    if compiler is None:
        pytest.skip("needs Debian's g++-aarch64-linux-gnu")
    build(
        tmp_path,
        f"-DCMAKE_CXX_COMPILER={compiler}",
        "-DCMAKE_SYSTEM_NAME=Linux",
        "-DCMAKE_SYSTEM_PROCESSOR=aarch64",
    )


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("sanitizer", ["address,undefined", "thread"])
def test_clang_compiles_and_passes_under_its_sanitizers(tmp_path: Path, sanitizer: str) -> None:
    names = ("clang++", *(f"clang++-{version}" for version in range(20, 13, -1)))
    compiler = next((found for name in names if (found := shutil.which(name))), None)
    if compiler is None:
        pytest.skip("needs clang and its sanitizers: apt-get install clang libclang-rt-dev")
    build(tmp_path, f"-DCMAKE_CXX_COMPILER={compiler}", f"-DCODEDINV_SANITIZE={sanitizer}")
    ctest = shutil.which("ctest") or pytest.fail("ctest comes with cmake")
    subprocess.run([ctest, "--test-dir", str(tmp_path), "--output-on-failure"], check=True)
