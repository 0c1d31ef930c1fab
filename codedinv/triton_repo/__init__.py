"""A model folder that a stock Triton Inference Server serves as a worker."""

from __future__ import annotations

from codedinv.triton_repo.repository import Backend, write_repository

__all__ = ["Backend", "write_repository"]
