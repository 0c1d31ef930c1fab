"""Runs one program of a launch in the interpreter, beside others in processes of their own.

The interpreter runs the programs of a launch one after another, so programs that wait for each
other would wait for ever. Here each has a process, and all scratch memory is mapped from files.

    python one_program.py FOLDER RANK
"""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"

import torch
from torch import Tensor
from triton.runtime.interpreter import interpreter_builder

from codedinv.kernels import inversion, launch, residual

torch.set_num_threads(1)


def mapped(path: Path, size: int, dtype: torch.dtype) -> Tensor:
    """The file at path as memory, shared with whoever maps it too."""
    return torch.from_file(str(path), shared=True, size=max(1, size), dtype=dtype)[:size]


def main(folder: Path, rank: int) -> None:
    job: dict[str, Any] = torch.load(folder / "job.pt", weights_only=False)
    programs: int = job["programs"]

    def plan_of(*arguments: Any) -> launch.Plan:
        """A plan of which this process runs one program."""
        plan = launch.plan_of(*arguments)
        assert plan.grid == (programs,)
        return dataclasses.replace(plan, grid=(1,))

    class Shared:
        """Scratch of all programs, in files."""

        def get(self, _: torch.device, plan: launch.Plan) -> list[Tensor]:
            views = [
                mapped(folder / f"scratch{i}", count, dtype)
                for i, (dtype, count) in enumerate(plan.scratch)
            ]
            counters = mapped(folder / "counters", plan.groups, torch.int32)
            return [*views[:4], counters, views[4]]

    dim, index = interpreter_builder.set_grid_dim, interpreter_builder.set_grid_idx
    interpreter_builder.set_grid_dim = lambda x, y, z: dim(programs, y, z)
    interpreter_builder.set_grid_idx = lambda x, y, z: index(rank, y, z)
    for module in (residual, inversion):
        module.plan_of, module.workspace = plan_of, Shared()
    x, packed, tuning = job["x"], job["packed"], job["tuning"]
    out = mapped(folder / "out", x.numel(), x.dtype).view(x.shape)
    if job["kernel"] == "stage":
        residual.run_stage(x, out, packed, tuning)
    else:
        shape = x.shape[0], len(packed)
        count = shape[0] * shape[1]
        iterations = mapped(folder / "iterations", count, torch.int32).view(shape)
        residuals = mapped(folder / "residual", count, torch.float32).view(shape)
        inversion.run_inversion(
            x, out, iterations, residuals, packed, job["tol"], 100, job["anderson"], tuning
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
