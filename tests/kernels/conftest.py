"""Runs the kernels on the GPU where there is one, else in Triton's interpreter on the CPU."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from codedinv.kernels.testing import poisoned_memory

if not torch.cuda.is_available():
    # Read where a kernel is defined, which codedinv.kernels does at its first launch.
    if "codedinv.kernels.tiles" in sys.modules and "TRITON_INTERPRET" not in os.environ:
        raise pytest.UsageError("kernels were compiled before tests/kernels asked to interpret")
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(autouse=True)
def _fresh_inputs_and_poison() -> Iterator[None]:
    """New random inputs in every run, and NaN in all memory that a kernel should overwrite."""
    seed = random.randrange(2**31)
    print(f"seed {seed}")
    torch.manual_seed(seed)
    if workspace := sys.modules.get("codedinv.kernels.workspace"):
        workspace.workspace.clear()  # or a test would find the numbers of the one before
    # The arrays are small: a second thread costs more than it does, most of all on a busy machine.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with poisoned_memory():
            assert torch.empty(1).isnan().all()
            yield
    finally:
        torch.set_num_threads(threads)


@pytest.fixture
def products_in_fixed_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter's matrix products sum over k in order, whatever row or column of the tile.

    NumPy asks the host's BLAS, whose bits for a row of the product depend on where in the matrix
    the row stands (edge tiles take another path on Haswell and Zen than on SkylakeX). A tensor
    core's do not, and neither do these: one rank-one update after another. A card is left alone.
    """
    if torch.cuda.is_available():
        return
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    def create_dot(_: Any, a: Any, b: Any, acc: Any, *_precision: Any) -> Any:
        total = acc.data.copy()
        columns, rows = a.data.astype(total.dtype), b.data.astype(total.dtype)
        for k in range(columns.shape[1]):
            total += np.multiply(columns[:, k : k + 1], rows[k : k + 1, :])
        return TensorHandle(total, acc.dtype.scalar)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", create_dot)
