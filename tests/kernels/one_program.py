"""Runs one program of a launch in the interpreter, beside others in processes of their own.

The interpreter runs the programs of a launch one after another, so programs that wait for each
other would wait for ever. Here each has a process, and all scratch memory is mapped from files.

    python one_program.py FOLDER RANK
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"

import torch
from codedinv.kernels import inversion, launch, residual
from torch import Tensor
from triton.runtime.interpreter import interpreter_builder

torch.set_num_threads(1)


def mapped(path: Path, like: Tensor) -> Tensor:
    """The file at path as memory, shaped like a tensor and shared with whoever maps it too."""
    flat = torch.from_file(str(path), shared=True, size=max(1, like.numel()), dtype=like.dtype)
    return flat[: like.numel()].view(like.shape)


def main(folder: Path, rank: int) -> None:
    job: dict[str, Any] = torch.load(folder / "job.pt", weights_only=False)
    real = launch.allocate

    def allocate(*arguments: Any, **options: Any) -> tuple[int, list[Tensor]]:
        """One program for this process to run; scratch of all of them, shared."""
        programs, scratch = real(*arguments, **options)
        assert programs == job["programs"]
        dim, index = interpreter_builder.set_grid_dim, interpreter_builder.set_grid_idx
        interpreter_builder.set_grid_dim = lambda x, y, z: dim(programs, y, z)
        interpreter_builder.set_grid_idx = lambda x, y, z: index(rank, y, z)
        return 1, [mapped(folder / f"scratch{i}", t) for i, t in enumerate(scratch)]

    x, packed, tuning = job["x"], job["packed"], job["tuning"]
    out = mapped(folder / "out", x)
    if job["kernel"] == "stage":
        residual.allocate = allocate
        residual.run_stage(x, out, packed, tuning)
    else:
        inversion.allocate = allocate
        shape = torch.empty(x.shape[0], len(packed))
        iterations = mapped(folder / "iterations", shape.int())
        residuals = mapped(folder / "residual", shape)
        inversion.run_inversion(
            x, out, iterations, residuals, packed, job["tol"], 100, job["anderson"], tuning
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
