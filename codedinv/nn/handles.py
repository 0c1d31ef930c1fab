"""Stages of a network packed for the kernels: once, and again only when a weight changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

import codedinv.kernels as kernels
from codedinv.nn.functional import Block

# Of each weight: which tensor, where its numbers are, and how often torch saw them change.
Fingerprint = list[tuple[int, int, int]]


class StageHandles:
    """The `kernels.PreparedBlocks` of a network's stages.

    A stage is packed anew for another dtype or device, and after a weight was replaced, loaded or
    changed in place. Two changes go unseen, for torch does not count them: in place through
    `.data`, and in place of weights made in inference mode; call `clear` after those.

    Copies and pickles begin empty.
    """

    def __init__(self) -> None:
        # The weights are kept too, so that no other tensor can have their identity.
        self._kept: dict[Any, tuple[Fingerprint, list[Tensor], kernels.PreparedBlocks]] = {}

    def __reduce__(self) -> tuple[type[StageHandles], tuple[()]]:
        return StageHandles, ()

    def clear(self) -> None:
        """Forgets all handles, so that they are packed anew."""
        self._kept.clear()

    def get(self, index: int, blocks: Sequence[Block], x: Tensor) -> kernels.PreparedBlocks:
        """The handle of a stage.

        Args:
            index: of the stage in its network.
            blocks: (weights, leading_elu) in forward order. x: an input, for dtype and device.
        """
        key = index, x.dtype, x.device
        weights = [tensor for parts, _ in blocks for tensor in parts]
        fingerprint = [(id(t), t.data_ptr(), _version(t)) for t in weights]
        kept = self._kept.get(key)
        if kept is not None and kept[0] == fingerprint:
            return kept[2]
        handle = kernels.prepare(blocks, x.device, x.dtype)
        self._kept[key] = fingerprint, weights, handle
        return handle


def _version(tensor: Tensor) -> int:
    """How often torch has seen a tensor change in place; 0 where it does not count."""
    return 0 if tensor.is_inference() else tensor._version
