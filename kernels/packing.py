"""Weights in the layout the kernels read, packed once per list of blocks.

PyTorch stores a convolution as [out, in, 3, 3]. The kernels read the first as [9 in, out] (columns
gathered before the product) and the last as [in, 9 out] (summed over neighbours after it), the
channel fastest within a tap, padded with zeros to sizes that tensor cores take.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock

import torch
import torch.nn.functional as F
from torch import Tensor

from . import streams
from .reference import Block
from .shapes import Stage, padded_channels, padded_taps, padded_width, parts_of


@dataclass(frozen=True)
class PackedBlocks:
    """Blocks of one shape, ready for a kernel.

    Attributes:
        channels, hidden: C and M of every block.
        parts: how many numbers make up a weight, 3 for float32 (see `shapes.parts_of`).
        w1: [blocks, parts, 9 CP padded, N], CP and N = C and M padded;
            w2: [blocks, parts, N, N]; w3: [blocks, parts, N, 9 C padded].
        b1, b2: [blocks, N]; b3: [blocks, C]; float32.
        leading: [blocks + 1] int32, 1 where a block begins with an ELU; the last entry is 0.
        leading_elu: the same as bools, for the host.
        ready: when the tensors were filled, None on the CPU.
    """

    channels: int
    hidden: int
    parts: int
    w1: Tensor
    b1: Tensor
    w2: Tensor
    b2: Tensor
    w3: Tensor
    b3: Tensor
    leading: Tensor
    leading_elu: tuple[bool, ...]
    ready: streams.Ready | None

    def __len__(self) -> int:
        return len(self.leading_elu)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """In the order in which kernels and operators take them."""
        return self.w1, self.b1, self.w2, self.b2, self.w3, self.b3, self.leading

    def stage(self, x: Tensor) -> Stage:
        """The shape of these blocks applied to x [B, C, H, W]."""
        return Stage(self.channels, x.shape[2], x.shape[3], self.hidden)


def check_blocks(channels: int, blocks: Sequence[Block]) -> None:
    """Raises ValueError unless all blocks have one shape that fits `channels`."""
    if not blocks:
        raise ValueError("blocks: expected at least one block, got none")
    hidden = blocks[0][0][0].shape[0]
    expected = (
        (hidden, channels, 3, 3), (hidden,), (hidden, hidden, 1, 1), (hidden,),
        (channels, hidden, 3, 3), (channels,),
    )  # fmt: skip
    for index, (weights, _) in enumerate(blocks):
        if len(weights) != 6:
            raise ValueError(
                f"blocks[{index}]: expected weights (w1, b1, w2, b2, w3, b3), got {len(weights)}"
            )
        shapes = tuple(tuple(tensor.shape) for tensor in weights)
        if shapes != expected:
            raise ValueError(f"blocks[{index}]: expected shapes {expected}, got {shapes}")


def pack(blocks: Sequence[Block], dtype: torch.dtype) -> PackedBlocks:
    """Packs blocks of one shape.

    Args:
        blocks: (weights, leading_elu) in forward order; weights as in `reference`.
        dtype: float32, bfloat16 or float16: what the kernels multiply in.

    Returns:
        PackedBlocks on the weights' device.

    Raises:
        ValueError: the blocks differ in shape.
    """
    channels = blocks[0][0][0].shape[1] if blocks else 0
    check_blocks(channels, blocks)
    hidden = blocks[0][0][0].shape[0]
    wide = padded_width(hidden)
    w1, b1, w2, b2, w3, b3 = (
        torch.stack([weights[i].detach() for weights, _ in blocks]) for i in range(6)
    )
    flags = [int(leading) for _, leading in blocks]
    return PackedBlocks(
        channels,
        hidden,
        parts_of(dtype)[1],
        _split(_pack_first(w1, wide), dtype),
        F.pad(b1, (0, wide - hidden)).float().contiguous(),
        _split(F.pad(w2[..., 0, 0].mT, (0, wide - hidden, 0, wide - hidden)), dtype),
        F.pad(b2, (0, wide - hidden)).float().contiguous(),
        _split(_pack_last(w3, wide), dtype),
        b3.float().contiguous(),
        torch.tensor([*flags, 0], dtype=torch.int32, device=w1.device),
        tuple(bool(flag) for flag in flags),
        streams.mark(w1.device),
    )


def _pack_first(weight: Tensor, width: int) -> Tensor:
    """[blocks, M, C, 3, 3] -> [blocks, 9 CP padded, width], rows tap * CP + c."""
    blocks, outputs, inputs = weight.shape[:3]
    channels = padded_channels(inputs)
    taps = weight.permute(0, 3, 4, 2, 1).reshape(blocks, 9, inputs, outputs)
    rows = F.pad(taps, (0, width - outputs, 0, channels - inputs)).flatten(1, 2)
    return F.pad(rows, (0, 0, 0, padded_taps(channels) - 9 * channels))


def _pack_last(weight: Tensor, width: int) -> Tensor:
    """[blocks, C, M, 3, 3] -> [blocks, width, 9 C padded], columns tap * C + c."""
    blocks, outputs, inputs = weight.shape[:3]
    columns = weight.permute(0, 2, 3, 4, 1).reshape(blocks, inputs, 9 * outputs)
    padding = (0, padded_taps(outputs) - 9 * outputs, 0, width - inputs)
    return F.pad(columns, padding)


def _split(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """[blocks, rows, columns] -> [blocks, parts, rows, columns], each part what the ones before it
    leave over."""
    part, count = parts_of(dtype)
    parts = []
    for _ in range(count):
        parts.append(weight.to(part))
        weight = weight - parts[-1].to(weight.dtype)
    return torch.stack(parts, dim=1)


@dataclass
class _Entry:
    weights: list[Tensor]
    versions: list[int]
    packed: PackedBlocks
    captured: bool


class PackCache:
    """Remembers the packed form of recently used blocks, so that calls with the same weights pack
    them once. What serves prepares its blocks instead (`prepare`) and needs no cache.

    An entry holds the weights themselves, so an address cannot be reused while it lives. A weight
    changed in place has another version and the blocks are packed anew, in place of the old entry
    (not one changed through `.data`, which torch does not count). Tensors made in inference mode
    carry no version, so they are packed at each call.

    CUDA graphs: blocks packed before a capture that uses them are kept for good, since the graph
    reads them whenever it is replayed; blocks packed within a capture belong to the graph and are
    not remembered, since they hold nothing until it is replayed. Streams: memory used on another
    stream than it was packed on is recorded there, so it is not reused too early, and that stream
    first waits for the packing.
    """

    def __init__(self, size: int = 64) -> None:
        self.size = size
        self._entries: OrderedDict[tuple[object, ...], _Entry] = OrderedDict()
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, blocks: Sequence[Block], dtype: torch.dtype) -> PackedBlocks:
        """`pack(blocks, dtype)`, from memory where nothing changed."""
        weights = [tensor for parts, _ in blocks for tensor in parts]
        if any(tensor.is_inference() for tensor in weights):
            return pack(blocks, dtype)
        versions = [tensor._version for tensor in weights]
        key = (
            dtype,
            weights[0].device if weights else None,
            tuple(leading for _, leading in blocks),
            tuple((tensor.data_ptr(), tensor.shape, tensor.stride()) for tensor in weights),
        )
        capturing = streams.capturing(weights[0].device)
        with self._lock:
            entry = self._entries.get(key)
            if entry is not None and entry.versions == versions:
                self._entries.move_to_end(key)
                entry.captured |= capturing
                streams.use(entry.packed.tensors, entry.packed.ready)
                return entry.packed
        packed = pack(blocks, dtype)
        if not capturing:
            with self._lock:
                self._remember(key, _Entry(weights, versions, packed, False))
        return packed

    def _remember(self, key: tuple[object, ...], entry: _Entry) -> None:
        replaced = self._entries.pop(key, None)
        if replaced is not None and replaced.captured:
            # Under a key of its own that no weights have.
            self._entries[object(),] = replaced
        self._entries[key] = entry
        free = [key for key, entry in self._entries.items() if not entry.captured]
        for oldest in free[: max(0, len(free) - self.size)]:
            del self._entries[oldest]
