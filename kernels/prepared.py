"""Blocks prepared once, for calls that are many: no packing, checking or looking up at each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from . import operators, reference, streams
from .gate import kernels_apply
from .on_chip import prepare_on_chip
from .packing import check_blocks, pack
from .reference import Block
from .shapes import reachable_tolerance, supported_dtype


def prepare(
    blocks: Sequence[Block],
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    on_chip: bool | None = None,
) -> PreparedBlocks:
    """Packs blocks of one shape for serving.

    Args:
        blocks: (weights, leading_elu) in forward order, all of one shape, as in `residual_blocks`.
        device, dtype: where and in what they will be called; default: as the weights are.
        on_chip: the kernels of docs/on-chip.md: True to run them or raise; None where they were
            measured to be faster; False for never.

    Returns:
        A handle with a copy of the weights: later changes to `blocks` do not reach it.

    Raises:
        ValueError: the blocks differ in shape, the dtype is not a floating one, or kernels on chip
            are demanded where they cannot run.
    """
    if not blocks:
        raise ValueError("blocks: expected at least one block, got none")
    first = blocks[0][0][0]
    device = first.device if device is None else torch.device(device)
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    dtype = supported_dtype(first.dtype if dtype is None else dtype, "dtype")
    check_blocks(first.shape[1], blocks)
    return PreparedBlocks(blocks, device, dtype, on_chip)


class PreparedBlocks:
    """Blocks of one shape, packed for the kernels; made by `prepare`.

    Calls give no gradients. Work on any stream and thread: scratch memory belongs to the stream
    that a call is made on (workspace.py). A CUDA graph that captured a call reads the packed
    weights at each replay, so the handle must live as long as the graph.

    Attributes:
        device, dtype: of inputs. channels, hidden: C and M of every block.
    """

    def __init__(
        self,
        blocks: Sequence[Block],
        device: torch.device,
        dtype: torch.dtype,
        on_chip: bool | None,
    ) -> None:
        with torch.no_grad():
            # A copy, for a dtype or shape that the kernels do not take.
            self._blocks: list[Block] = [
                (tuple(tensor.to(device, dtype, copy=True) for tensor in weights), bool(leading))  # type: ignore[misc]
                for weights, leading in blocks
            ]
            self._packed = pack(self._blocks, dtype)
        self._on_chip = prepare_on_chip(self._blocks, device, dtype, on_chip)
        self.device, self.dtype = device, dtype
        self.channels, self.hidden = self._packed.channels, self._packed.hidden
        self._arguments = (*self._packed.tensors, self.hidden)
        self._taken: dict[torch.Size, bool] = {}

    def __len__(self) -> int:
        return len(self._blocks)

    def __repr__(self) -> str:
        return (
            f"PreparedBlocks({len(self)} blocks, {self.channels} channels, {self.hidden} hidden, "
            f"{self.dtype}, {self.device})"
        )

    def __call__(self, x: Tensor) -> Tensor:
        """y = blocks(x), [B, C, H, W] of the handle's dtype and device.

        Raises:
            ValueError: x has another shape, dtype or device, wants gradients, or does not fit on
                chip where that is demanded.
        """
        taken = self._takes(x, "x")
        if self._on_chip is not None and self._on_chip.takes("forward", x.shape):
            return self._on_chip.forward(x)
        if not taken:
            return reference.residual_blocks(x, self._blocks)
        return torch.ops.codedinv.prepared_forward.default(x, *self._arguments)

    def invert(
        self, y: Tensor, tol: float = 1e-5, max_iter: int = 100, anderson: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`invert_detailed` of these blocks.

        Returns:
            x like y; iterations [B, blocks] int32; residual [B, blocks] float32.

        Raises:
            ValueError: as for a call, tol or max_iter is not positive, or anderson where kernels
                on chip are demanded, which do not mix.
        """
        tolerance = reachable_tolerance(tol, self.dtype)
        if max_iter < 1:
            raise ValueError(f"max_iter: expected at least 1, got {max_iter}")
        taken = self._takes(y, "y")
        if self._on_chip is not None:
            if anderson and self._on_chip.demanded:
                raise ValueError("anderson: expected False, for the kernels on chip do not mix")
            if not anderson and self._on_chip.takes("inversion", y.shape):
                return self._on_chip.inverse(y, tolerance, max_iter)
        if not taken:
            return operators.torch_inverse(y, self._blocks, tolerance, max_iter, anderson)
        return torch.ops.codedinv.prepared_inverse.default(
            y, *self._arguments, tolerance, max_iter, anderson
        )

    def warm_up(self, height: int, width: int, batches: Iterable[int], inverse: bool = True) -> int:
        """Compiles what calls with these batch sizes will launch, so that no query waits for it.

        Args:
            height, width: of the images. batches: sizes to expect, such as range(1, 257).
            inverse: also for `invert` without acceleration.

        Returns:
            How many kernels that were: sizes share them.
        """
        kernels = ("stage", "inversion") if inverse else ("stage",)
        seen = set()
        for batch in batches:
            shape = torch.Size((batch, self.channels, height, width))
            x = torch.zeros(shape, dtype=self.dtype, device=self.device)
            taken = self._takes(x, "x")
            for kernel in kernels:
                key = self._compiled(kernel, shape, taken)
                if key is None or key in seen:
                    continue
                seen.add(key)
                if kernel == "stage":
                    self(x)
                else:
                    self.invert(x, max_iter=1)
        return len(seen)

    def _compiled(self, kernel: str, shape: torch.Size, taken: bool) -> object:
        """What kernel "stage" or "inversion" compiles for a batch; None if nothing."""
        name = "forward" if kernel == "stage" else kernel
        if self._on_chip is not None and self._on_chip.takes(name, shape):
            return name, self._on_chip.layout(name, shape)
        if not taken:
            return None
        return kernel, operators.plan(kernel, shape, self.hidden, self.dtype, self.device).sizes

    def _takes(self, x: Tensor, name: str) -> bool:
        """Whether the kernels take x, once it has been checked."""
        if x.dtype is not self.dtype or x.device != self.device:
            raise ValueError(
                f"{name}: expected {self.dtype} on {self.device}, got {x.dtype} on {x.device}"
            )
        if x.requires_grad and torch.is_grad_enabled():
            raise ValueError(
                f"{name}: expected a tensor without gradients (prepared blocks have none); call "
                "residual_blocks(x, blocks) or invert(y, blocks), which do, or use torch.no_grad()"
            )
        if self._packed.ready is not None:
            streams.use(self._packed.tensors, self._packed.ready)
        taken = self._taken.get(x.shape)
        if taken is None:
            if x.ndim != 4 or x.shape[1] != self.channels:
                raise ValueError(
                    f"{name}: expected shape [B, {self.channels}, H, W], got {tuple(x.shape)}"
                )
            taken = self._taken[x.shape] = kernels_apply(x, self.hidden)
        return taken
