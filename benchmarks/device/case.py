"""A run of blocks with given tiles, held to float64: what tuning and the sanitizer launch."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from codedinv.kernels import reference, testing
from codedinv.kernels.tuning import Stage, StageTuning

from .timing import checked

BLOCKS = 2
CPU = torch.device("cpu")


class Case:
    """Two blocks of one stage, fresh images, and the right answer for the first of these.

    Args:
        kernel: "stage" or "inversion".
        stage, dtype, batch: the shape.
        tolerance: of an inversion.
        anderson: whether the inversion mixes iterates.
    """

    def __init__(
        self,
        kernel: str,
        stage: Stage,
        dtype: torch.dtype,
        batch: int,
        tolerance: float,
        anderson: bool = False,
    ) -> None:
        from codedinv.kernels.packing import pack

        self.kernel, self.tolerance, self.anderson = kernel, tolerance, anderson
        blocks = testing.cast(testing.draw_blocks(stage, BLOCKS), dtype)
        self.packed = pack(blocks, dtype)
        self.x = testing.draw_images(stage, batch).to(testing.DEVICE, dtype)
        self.out = torch.empty_like(self.x)
        self.iterations = torch.empty(batch, BLOCKS, dtype=torch.int32, device=self.x.device)
        self.residual = torch.empty(batch, BLOCKS, device=self.x.device)
        self.limit = testing.ERROR_LIMIT[dtype]
        if kernel == "inversion":
            self.limit = max(self.limit, 30 * tolerance)
        self._blocks = blocks

    @cached_property
    def expected(self) -> Tensor:
        """Of the first images, in float64; on the CPU, so that a sanitizer has only the kernels
        to watch."""
        exact = testing.cast(self._blocks, torch.float64, CPU)
        first = self.x[:8].to(CPU, torch.float64)
        if self.kernel == "stage":
            return reference.residual_blocks(first, exact)
        return reference.invert(first, exact, 1e-12, 300)[0]

    def launch(self, tiles: StageTuning) -> None:
        """Runs the kernel."""
        # Imported here, once it is known whether the process interprets kernels.
        from codedinv.kernels.inversion import run_inversion
        from codedinv.kernels.residual import run_stage

        if self.kernel == "stage":
            run_stage(self.x, self.out, self.packed, tiles)
        else:
            run_inversion(
                self.x, self.out, self.iterations, self.residual, self.packed,
                self.tolerance, 100, self.anderson, tiles,
            )  # fmt: skip

    def check(self, tiles: StageTuning) -> float:
        """The relative error of a run into memory that held no answer.

        Raises:
            RuntimeError: it is too large, or an image did not converge.
        """
        self.out.fill_(float("nan"))
        self.residual.fill_(float("nan"))
        self.launch(tiles)
        if self.kernel == "inversion" and not bool((self.residual <= self.tolerance).all()):
            raise RuntimeError(f"residual {float(self.residual.max()):.2e} after the cap")
        return checked(self.out, self.expected, self.limit)
