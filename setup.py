"""Builds the C++ decoder with CMake and lays out the packages; metadata lives in pyproject.toml."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


def find_cmake() -> str:
    """Path of pip's cmake, even where its folder is not on PATH, else of the system's."""
    try:
        import cmake
    except ImportError:
        on_path = shutil.which("cmake")
        if on_path is None:
            raise RuntimeError(
                "cmake not found: pip install cmake, or apt-get install cmake"
            ) from None
        return on_path
    return str(Path(cmake.CMAKE_BIN_DIR) / "cmake")


class CMakeBuild(build_ext):
    """Configures and builds csrc/ and puts the module where setuptools expects it."""

    def build_extension(self, ext: Extension) -> None:
        import pybind11

        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        build = Path(self.build_temp).resolve()
        build.mkdir(parents=True, exist_ok=True)
        # A cache remembers the ninja and the Python of an isolated build environment that is gone.
        (build / "CMakeCache.txt").unlink(missing_ok=True)
        shutil.rmtree(build / "CMakeFiles", ignore_errors=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(
            [
                find_cmake(),
                "-S",
                str(ROOT),
                "-B",
                str(build),
                "-DCMAKE_BUILD_TYPE=Release",
                "-DCODEDINV_BUILD_PYTHON=ON",
                "-DCODEDINV_BUILD_TESTS=OFF",
                f"-DCODEDINV_MODULE_DIR={target.parent}",
                f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
                f"-DPython_EXECUTABLE={sys.executable}",
            ],
            check=True,
        )
        jobs = str(self.parallel or os.cpu_count() or 1)
        subprocess.run(
            [find_cmake(), "--build", str(build), "--config", "Release", "--parallel", jobs],
            check=True,
        )


setup(
    packages=[
        *find_packages(include=["codedinv", "codedinv.*"]),
        "codedinv.kernels",
        *(f"codedinv.kernels.{name}" for name in find_packages("kernels")),
    ],
    package_dir={"codedinv": "codedinv", "codedinv.kernels": "kernels"},
    ext_modules=[Extension("codedinv.coding._decoder", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)
