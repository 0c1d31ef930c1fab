"""Prepared blocks on the kernels of cuda/, whose state stays on chip: when they run, and their
operators."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from . import on_chip_driver, streams
from .gate import card_of, measured_faster, say_once, unsupported_card
from .on_chip_compile import CompileError, nvrtc
from .on_chip_launch import arguments_of
from .on_chip_packing import pack_on_chip
from .on_chip_plan import DTYPES, layout_for
from .on_chip_shape import LARGEST_CLUSTER, Layout
from .reference import Block
from .shapes import Stage, pixelwise
from .tuning import measured_on_chip

# Numbers of blocks of threads that may share the channels: one pack of the weights for each.
SPLITS = tuple(2**i for i in range(LARGEST_CLUSTER.bit_length()))


def unsupported_on_chip(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why no kernel of cuda/ can run there; None if some can."""
    if dtype not in DTYPES:
        return f"dtype {dtype} (products are of bfloat16 or float16)"
    if device.type != "cuda":
        return f"device {device.type} (they run on cuda)"
    if nvrtc() is None:
        return "NVRTC was not found (it comes with torch for CUDA, or with nvidia-cuda-nvrtc)"
    return unsupported_card(device)


def prepare_on_chip(
    blocks: Sequence[Block], device: torch.device, dtype: torch.dtype, demanded: bool | None
) -> OnChipBlocks | None:
    """Packs blocks for these kernels, None where they will not run.

    Args:
        blocks: of one shape, on the device, in the dtype.
        demanded: True to run them or raise; None to run them only where a receipt in measured.json
            shows that they are faster than whatever else there is; False for never.

    Raises:
        ValueError: they are demanded and cannot run.
    """
    if demanded is False:
        return None
    reason = unsupported_on_chip(device, dtype)
    if demanded and reason is not None:
        raise ValueError(f"on_chip: {reason}")
    if reason is not None or not (demanded or measured_on_chip(card_of(device))):
        return None
    return OnChipBlocks(blocks, device, dtype, bool(demanded))


class OnChipBlocks:
    """Blocks packed for the kernels of cuda/.

    Attributes:
        demanded: whether a call that cannot run raises.
    """

    def __init__(
        self, blocks: Sequence[Block], device: torch.device, dtype: torch.dtype, demanded: bool
    ) -> None:
        self.hidden, self.channels = blocks[0][0][0].shape[:2]
        self.demanded = demanded
        self._device, self._dtype = device, dtype
        stage = Stage(self.channels, 1, 1, self.hidden)
        layouts = [Layout(stage, splits=splits, shared=True) for splits in SPLITS]
        self._packs = [
            pack_on_chip(blocks, layout, dtype) for layout in layouts if layout.unfit() is None
        ]
        flags = [int(leading) for _, leading in blocks]
        self._leading = torch.tensor([*flags, 0], dtype=torch.int32, device=device)
        self._ready = streams.mark(device)
        self._taken: dict[tuple[str, torch.Size], bool] = {}

    def takes(self, kernel: str, shape: torch.Size) -> bool:
        """Whether kernel "forward" or "inversion" runs for a batch [B, C, H, W].

        Raises:
            ValueError: it is demanded and cannot.
        """
        taken = self._taken.get((kernel, shape))
        if taken is None:
            taken = self._decide(kernel, shape)
            if not streams.capturing(self._device):  # where nothing can be loaded
                self._taken[kernel, shape] = taken
        if taken and self._ready is not None:
            streams.use([*self._packs, self._leading], self._ready)
        return taken

    def forward(self, x: Tensor) -> Tensor:
        """All blocks of x, once `takes` has said so."""
        return torch.ops.codedinv.on_chip_forward.default(
            x, self._packs, self._leading, self.hidden
        )

    def inverse(self, y: Tensor, tolerance: float, max_iter: int) -> tuple[Tensor, Tensor, Tensor]:
        """x with blocks(x) = y, iterations and residual, once `takes` has said so."""
        return torch.ops.codedinv.on_chip_inverse.default(
            y, self._packs, self._leading, self.hidden, tolerance, max_iter
        )

    def layout(self, kernel: str, shape: torch.Size) -> Layout:
        """What a batch [B, C, H, W] will be launched in."""
        return planned(kernel, shape, self.hidden, self._dtype, self._device)

    def _decide(self, kernel: str, shape: torch.Size) -> bool:
        batch, channels, height, width = shape
        if 0 in shape:
            return False
        stage, card = Stage(channels, height, width, self.hidden), card_of(self._device)
        if not self.demanded and not measured_faster(
            f"on_chip {kernel}", stage, self._dtype, batch, card
        ):
            return False
        layout = layout_for(stage, batch, card.multiprocessors, card.capability, kernel)
        if self.demanded:
            if isinstance(layout, str):
                raise ValueError(f"on_chip: {layout}")
            return True
        reason = layout if isinstance(layout, str) else self._fault(kernel, layout)
        if reason is not None:
            say_once(f"codedinv.kernels does not run on chip what was measured there: {reason}")
        return reason is None

    def _fault(self, kernel: str, layout: Layout) -> str | None:
        """Compiles and loads a kernel that nobody demanded; why it cannot be, None if it can."""
        try:
            on_chip_driver.kernel_of(kernel, layout, self._dtype, self._device)
        except (CompileError, on_chip_driver.DriverError, OSError) as error:
            return str(error)
        return None


@lru_cache(maxsize=4096)
def planned(
    kernel: str, shape: torch.Size, hidden: int, dtype: torch.dtype, device: torch.device
) -> Layout:
    """The layout of kernel "forward" or "inversion" for a batch of that shape.

    Raises:
        ValueError: there is none.
    """
    batch, channels, height, width = shape
    card = card_of(device)
    stage = Stage(channels, height, width, hidden)
    layout = layout_for(stage, batch, card.multiprocessors, card.capability, kernel)
    if isinstance(layout, str):
        raise ValueError(f"on_chip: {layout}")
    return layout


def _launch(
    kernel: str,
    given: Tensor,
    packs: Sequence[Tensor],
    leading: Tensor,
    hidden: int,
    verdicts: Sequence[Tensor] = (),
    tolerance: float = 0.0,
    max_iter: int = 0,
) -> Tensor:
    given = pixelwise(given)
    out = torch.empty_like(given)
    layout = planned(kernel, given.shape, hidden, given.dtype, given.device)
    weights = next(pack for pack in packs if pack.shape[1] == layout.splits)
    arguments = arguments_of(given, out, weights, leading, verdicts, tolerance, max_iter)
    clusters = -(-given.shape[0] // layout.images)
    on_chip_driver.kernel_of(kernel, layout, given.dtype, given.device)(arguments, clusters)
    return out


def _forward(x: Tensor, packs: Sequence[Tensor], leading: Tensor, hidden: int) -> Tensor:
    return _launch("forward", x, packs, leading, hidden)


def _verdicts(y: Tensor, blocks: int) -> tuple[Tensor, Tensor]:
    shape = y.shape[0], blocks
    return y.new_empty(shape, dtype=torch.int32), y.new_empty(shape, dtype=torch.float32)


def _inverse(
    y: Tensor,
    packs: Sequence[Tensor],
    leading: Tensor,
    hidden: int,
    tolerance: float,
    max_iter: int,
) -> tuple[Tensor, Tensor, Tensor]:
    verdicts = _verdicts(y, leading.shape[0] - 1)
    out = _launch("inversion", y, packs, leading, hidden, verdicts, tolerance, max_iter)
    return out, *verdicts


PACKED = "Tensor[] packs, Tensor leading, int hidden"
_library = torch.library.Library("codedinv", "FRAGMENT")
_library.define(f"on_chip_forward(Tensor x, {PACKED}) -> Tensor")
_library.define(
    f"on_chip_inverse(Tensor y, {PACKED}, float tolerance, int max_iter)"
    " -> (Tensor, Tensor, Tensor)"
)
for _key in ("CPU", "CUDA"):  # on a CPU a test launches its emulator
    _library.impl("on_chip_forward", _forward, _key)
    _library.impl("on_chip_inverse", _inverse, _key)


@torch.library.register_fake("codedinv::on_chip_forward", lib=_library)
def _(x, *_packed):  # type: ignore[no-untyped-def]
    return torch.empty_like(pixelwise(x))


@torch.library.register_fake("codedinv::on_chip_inverse", lib=_library)
def _(y, packs, leading, *_rest):  # type: ignore[no-untyped-def]
    return torch.empty_like(pixelwise(y)), *_verdicts(y, leading.shape[0] - 1)
