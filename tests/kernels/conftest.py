"""Runs the kernels on the GPU where there is one, else in Triton's interpreter on the CPU."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Iterator

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
    with poisoned_memory():
        assert torch.empty(1).isnan().all()
        yield
