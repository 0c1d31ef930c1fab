"""Encoders for queries of any shape, as wide as a budget of multiply-accumulates allows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from codedinv.nn.encoder import Encoder, EncoderConfig
from codedinv.nn.light import widest

_PATCHES = (4, 2, 5, 3, 7, 8, 6, 1)  # sides of patches, the ones that served best first


def encoder_for(
    input_shape: Sequence[int],
    coefficients: NDArray[np.float64],
    budget: float,
    normalised: bool = False,
) -> Encoder:
    """The widest encoder for such queries of at most `budget` multiply-accumulates a call.

    Images (C, H, W) and series (C, L) are convolved, anything else is a vector.

    Args:
        input_shape: of a query.
        coefficients: (r, k) of its code.
        budget: multiply-accumulates of one call, for a group of k queries.
        normalised: see EncoderConfig.

    Raises:
        ValueError: the budget does not pay for any encoder.
    """
    rows = tuple(tuple(row) for row in np.asarray(coefficients).tolist())
    group = torch.zeros(1, len(rows[0]), *input_shape)
    for patch in _patches_of(input_shape):
        for blocks in (2, 1, 0):

            def build(width: int, patch: int = patch, blocks: int = blocks) -> Encoder:
                return Encoder(
                    EncoderConfig(
                        input_shape=tuple(input_shape),
                        coefficients=rows,
                        patch=patch,
                        input_channels=max(2, width // 2),
                        width=width,
                        blocks=blocks,
                        normalised=normalised,
                    )
                )

            found = widest(build, budget, group)
            if found is not None and (found.config.width >= 8 or blocks == 0):
                return found
    raise ValueError(
        f"budget: {budget:.0f} multiply-accumulates are too few for any encoder of "
        f"{len(rows[0])} queries {tuple(input_shape)}"
    )


def _patches_of(input_shape: Sequence[int]) -> list[int]:
    sides = input_shape[1:] if len(input_shape) in (2, 3) else ()
    if not sides:
        return [1]
    return [patch for patch in _PATCHES if not any(size % patch for size in sides)]
