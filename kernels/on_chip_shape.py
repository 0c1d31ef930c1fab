"""How an image's stage is laid on a cluster of blocks of threads: the constants of cuda/shape.cuh,
for the host."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .shapes import Stage

# What mma.m16n8k16 takes.
TILE_M, TILE_N, TILE_K = 16, 8, 16
# A portable cluster's blocks; images of a cluster, for each of which a lane speaks.
LARGEST_CLUSTER, MOST_IMAGES = 8, 32


def _round_up(number: int, to: int) -> int:
    return -(-number // to) * to


@dataclass(frozen=True)
class Layout:
    """What a kernel is compiled for.

    Attributes:
        stage: the shape of its images and blocks.
        images: images of a cluster.
        bands, splits: blocks of threads of a cluster, which share its images by rows or by
            channels; one of them is 1.
        shared: whether warps share hidden layers through shared memory, as splits must.
        warps: of a block of threads.
        tall: tiles of 16 pixels that a warp multiplies at once.
    """

    stage: Stage
    images: int = 1
    bands: int = 1
    splits: int = 1
    shared: bool = False
    warps: int = 16
    tall: int = 1

    def __str__(self) -> str:
        parts = f"{self.bands} bands" if self.splits == 1 else f"{self.splits} splits"
        layers = "shared layers, " * self.shared
        warps = f"{self.warps} warps of {self.tall} tiles"
        return f"{self.stage}, {self.images} images, {parts}, {layers}{warps}"

    @property
    def cluster(self) -> int:
        """Blocks of threads of a cluster."""
        return self.bands * self.splits

    @property
    def rows(self) -> int:
        """Rows of a band; the last may have fewer."""
        return -(-self.stage.height // self.bands)

    @property
    def own(self) -> int:
        """Channels whose x a block of threads keeps."""
        return self.stage.channels // self.splits

    @property
    def vector(self) -> int:
        """Channels that a thread treats at once."""
        if self.stage.channels == 3 and self.splits == 1:
            return 3
        return next(size for size in (4, 2, 1) if self.own % size == 0)

    @property
    def team(self) -> int:
        """Warps that share an image outside the products."""
        return max(1, self.warps // self.images)

    @property
    def inner(self) -> int:
        """Hidden channels, padded to what a product takes."""
        return _round_up(self.stage.hidden, TILE_K)

    @property
    def depth(self) -> int:
        """Channels of a pixel's activations, padded."""
        channels = self.stage.channels
        return next((n for n in (2, 4, 8) if channels <= n), _round_up(channels, TILE_K))

    @property
    def first_rows(self) -> int:
        """Rows of the first product's weights, padded."""
        return _round_up(9 * self.depth, TILE_K)

    @property
    def last_columns(self) -> int:
        """Columns of the last product's weights in one block of threads, padded."""
        return _round_up(9 * self.own, 2 * TILE_N)

    @property
    def inner_tiles(self) -> int:
        """Tiles of hidden channels that a block of threads computes."""
        return self.inner // self.splits // TILE_N

    @property
    def pixels(self) -> int:
        """Pixels whose products a block of threads computes: with a row more on each side of a
        band."""
        return self.images * (self.rows + (2 if self.bands > 1 else 0)) * self.stage.width

    @property
    def tiles(self) -> int:
        """Tiles of these pixels."""
        return _round_up(-(-self.pixels // TILE_M), self.tall)

    @property
    def shared_weight_bytes(self) -> int:
        """Weights of a block of layers that a block of threads keeps in shared memory."""
        inner = self.inner // self.splits
        numbers = inner * (self.first_rows + self.inner) + self.inner * self.last_columns
        return 2 * numbers + 8 * inner

    @property
    def weight_bytes(self) -> int:
        """The same with the last bias."""
        return self.shared_weight_bytes + _round_up(4 * self.own, 16)

    def shared_bytes(self, kernel: str) -> int:
        """Shared memory of a block of threads of kernel "forward" or "inversion"."""
        stage, many = self.stage, self.bands > 1
        reach = 2 if many else 1
        pitch = self.depth + (8 if self.depth >= TILE_K else 0)
        area = (self.rows + 2 * reach) * (stage.width + 2)
        active = _round_up(self.images * area * pitch, 8) * (2 if many else 1)
        layers = 2 * self.tiles * TILE_M * (self.inner + 8) if self.shared else 0
        columns = 9 * self.own
        products = _round_up(4 * self.pixels * (columns | 1 if self.vector % 2 else columns), 16)
        state = 4 * _round_up(self.images * self.rows * stage.width * self.own, 4)
        forward = self.shared_weight_bytes + 2 * active + 2 * layers + products + state
        if kernel == "forward":
            return forward
        return forward + state + 16 * self.images * self.cluster * self.team

    def defines(self, dtype: torch.dtype) -> tuple[str, ...]:
        """Compiler options that say this to shape.cuh. dtype: bfloat16 or float16."""
        stage = self.stage
        numbers = {
            "BF16": int(dtype == torch.bfloat16), "CHANNELS": stage.channels,
            "HEIGHT": stage.height, "WIDTH": stage.width, "HIDDEN": stage.hidden,
            "IMAGES": self.images, "BANDS": self.bands, "SPLITS": self.splits,
            "SHARED": int(self.shared), "WARPS": self.warps, "TALL": self.tall,
        }  # fmt: skip
        return tuple(f"-D{name}={number}" for name, number in numbers.items())

    def unfit(self) -> str | None:
        """Why shape.cuh would refuse this; None if it would not."""
        stage = self.stage
        if self.bands > 1 and self.splits > 1:
            return "both bands and splits"
        if self.splits > 1 and not self.shared:
            return "splits that do not share hidden layers"
        if self.cluster > LARGEST_CLUSTER:
            return f"a cluster of {self.cluster}"
        if not 1 <= self.images <= MOST_IMAGES:
            return f"{self.images} images"
        if self.rows * (self.bands - 1) >= stage.height or (self.bands > 1 and self.rows < 2):
            return f"{self.bands} bands of {stage.height} rows"
        if stage.channels % self.splits or self.inner % (self.splits * TILE_N):
            return f"{self.splits} splits of {stage.channels} and {self.inner} channels"
        return None
