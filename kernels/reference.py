"""The plain torch oracle: what every kernel in this package must compute.

Written for clarity, in the dtype of its inputs; tests call it in float64. It is also the path
taken where a kernel does not apply, and what backward passes differentiate.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_weight

BlockWeights = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
Block = tuple[BlockWeights, bool]

# Relative regularisation of the one Anderson coefficient; keeps it finite when two successive
# residuals are nearly equal.
ANDERSON_REGULARISATION = 1e-4


def residual_branch(x: Tensor, weights: BlockWeights, leading_elu: bool) -> Tensor:
    """F(x) = W3 * elu(W2 * elu(W1 * a(x) + b1) + b2) + b3, a = elu or the identity.

    Args:
        x: [B, C, H, W].
        weights: (w1 [M, C, 3, 3], b1 [M], w2 [M, M, 1, 1], b2 [M], w3 [C, M, 3, 3], b3 [C]).
        leading_elu: whether the branch begins with an ELU.

    Returns:
        [B, C, H, W].
    """
    w1, b1, w2, b2, w3, b3 = weights
    hidden = F.elu(x) if leading_elu else x
    hidden = F.elu(F.conv2d(hidden, w1, b1, padding=1))
    hidden = F.elu(F.conv2d(hidden, w2, b2))
    return F.conv2d(hidden, w3, b3, padding=1)


class Linearised:
    """F and the transpose of its Jacobian at one x, without automatic differentiation.

    Args:
        x, weights, leading_elu: as in `residual_branch`.

    Attributes:
        value: F(x).
    """

    def __init__(self, x: Tensor, weights: BlockWeights, leading_elu: bool) -> None:
        w1, b1, w2, b2, w3, b3 = weights
        self._weights = w1, w2, w3
        self._leading_elu = leading_elu
        self._h0 = F.elu(x) if leading_elu else x
        self._h1 = F.elu(F.conv2d(self._h0, w1, b1, padding=1))
        self._h2 = F.elu(F.conv2d(self._h1, w2, b2))
        self.value = F.conv2d(self._h2, w3, b3, padding=1)

    def _pull_to_hidden(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """v pulled back to before the second and the first ELU of the branch's inside."""
        _, w2, w3 = self._weights
        second = F.conv_transpose2d(v, w3, padding=1) * _elu_slope(self._h2)
        return second, F.conv_transpose2d(second, w2) * _elu_slope(self._h1)

    def pull(self, v: Tensor) -> Tensor:
        """J^T v."""
        _, first = self._pull_to_hidden(v)
        pulled = F.conv_transpose2d(first, self._weights[0], padding=1)
        return pulled * _elu_slope(self._h0) if self._leading_elu else pulled

    def weight_gradients(self, v: Tensor) -> list[Tensor]:
        """The gradients of <v, F> by (w1, b1, w2, b2, w3, b3)."""
        w1, w2, w3 = self._weights
        second, first = self._pull_to_hidden(v)
        return [
            conv2d_weight(self._h0, w1.shape, first, padding=1), first.sum((0, 2, 3)),
            conv2d_weight(self._h1, w2.shape, second), second.sum((0, 2, 3)),
            conv2d_weight(self._h2, w3.shape, v, padding=1), v.sum((0, 2, 3)),
        ]  # fmt: skip


def _elu_slope(activated: Tensor) -> Tensor:
    """elu'(p) from elu(p): 1 above zero, exp(p) = elu(p) + 1 below."""
    return torch.where(activated > 0, torch.ones_like(activated), activated + 1)


def residual_blocks(x: Tensor, blocks: Sequence[Block]) -> Tensor:
    """Applies y = x + F(x) for each block in order. x and y: [B, C, H, W]."""
    for weights, leading_elu in blocks:
        x = x + residual_branch(x, weights, leading_elu)
    return x


def invert(
    y: Tensor, blocks: Sequence[Block], tol: float, max_iter: int, anderson: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Inverts `residual_blocks`, block by block from the last, each image on its own.

    Iterates x <- y - F(x) from x = y until the relative step ||x_new - x|| / max(||x_new||, ||y||)
    is at most tol or max_iter is reached (relative to y too: rounding in y - F(x) is).
    An image that failed a block is left as it is by the blocks before it.

    Args:
        y: [B, C, H, W].
        blocks: (weights, leading_elu) in forward order.
        tol: relative step at which an image is done with a block.
        max_iter: iterations an image may spend on one block.
        anderson: mix the last two iterates (Anderson acceleration of depth 1).

    Returns:
        x [B, C, H, W]; iterations [B, blocks] int32; residual [B, blocks] float32, the last
        relative step, infinite where it is not a number. A column 0 in both means that an
        earlier failure left the block untried.
    """
    batch = y.shape[0]
    iterations = torch.zeros(batch, len(blocks), dtype=torch.int32, device=y.device)
    residual = torch.zeros(batch, len(blocks), dtype=torch.float32, device=y.device)
    failed = torch.zeros(batch, dtype=torch.bool, device=y.device)
    for index in reversed(range(len(blocks))):
        weights, leading_elu = blocks[index]
        rows = torch.nonzero(~failed)[:, 0]
        if rows.numel() == 0:
            break
        x, steps, last = _invert_block(y[rows], weights, leading_elu, tol, max_iter, anderson)
        y = y.index_copy(0, rows, x)
        iterations[rows, index] = steps
        residual[rows, index] = last
        failed[rows] = ~(last <= tol)
    return y, iterations, residual


def _invert_block(
    y: Tensor, weights: BlockWeights, leading_elu: bool, tol: float, max_iter: int, anderson: bool
) -> tuple[Tensor, Tensor, Tensor]:
    batch = y.shape[0]
    result = torch.empty_like(y)
    iterations = torch.zeros(batch, dtype=torch.int32, device=y.device)
    residual = torch.zeros(batch, dtype=torch.float32, device=y.device)
    rows = torch.arange(batch, device=y.device)
    x = y
    before: tuple[Tensor, Tensor] | None = None
    for iteration in range(1, max_iter + 1):
        image = y - residual_branch(x, weights, leading_elu)
        step = image - x
        relative = _relative_step(step, image, y)
        x = image if not anderson or before is None else _anderson(image, step, *before)
        active = ~(relative <= tol)
        if iteration == max_iter or not bool(active.all()):
            ended = torch.ones_like(active) if iteration == max_iter else ~active
            result[rows[ended]] = image[ended]
            iterations[rows[ended]] = iteration
            residual[rows[ended]] = (
                relative[ended].nan_to_num(nan=float("inf"), posinf=float("inf")).float()
            )
            rows, y, x = rows[active], y[active], x[active]
            image, step = image[active], step[active]
            if rows.numel() == 0:
                break
        before = (image, step)
    return result, iterations, residual


def _relative_step(step: Tensor, image: Tensor, y: Tensor) -> Tensor:
    """||step|| / max(||image||, ||y||), [B]: 0 where all are 0, not a number where one is not
    finite."""
    unit = _unit(image, y)
    size = (image / unit).flatten(1).norm(dim=1).maximum((y / unit).flatten(1).norm(dim=1))
    return (step / unit).flatten(1).norm(dim=1) / size.clamp_min(torch.finfo(y.dtype).tiny)


def _unit(*tensors: Tensor) -> Tensor:
    """The largest element of each image [B, 1, 1, 1], in whose unit sums of squares of it neither
    overflow nor vanish."""
    tiny = torch.finfo(tensors[0].dtype).tiny
    units = [tensor.abs().amax(dim=(1, 2, 3), keepdim=True) for tensor in tensors]
    return torch.stack(units).amax(dim=0).clamp_min(tiny)


def _anderson(image: Tensor, step: Tensor, last_image: Tensor, last_step: Tensor) -> Tensor:
    """Mixes G(x_k) and G(x_{k-1}) so that the linearised residual is least, per image."""
    unit = _unit(step, last_step)
    flat, last = (step / unit).flatten(1), (last_step / unit).flatten(1)
    change = flat - last
    diagonal = (change * change).sum(1) * (1 + ANDERSON_REGULARISATION) + 1e-30
    mix = (flat * change).sum(1) / diagonal
    # Safeguard: where the residual grew, the secant model is no good; take the plain step.
    grew = ~(flat.norm(dim=1) <= last.norm(dim=1))
    mix = torch.where(grew, torch.zeros_like(mix), mix)
    return image - mix[:, None, None, None] * (image - last_image)


def power_iteration(
    weights: Sequence[Tensor], vectors: Sequence[Tensor], iterations: int
) -> tuple[Tensor, list[Tensor]]:
    """Power iteration of W^T W for convolution operators W (stride 1, same padding).

    Args:
        weights: one [O, I, k, k] per convolution, k = 1 or 3.
        vectors: one [1, I, H, W] per convolution, the current estimate at the true size.
        iterations: steps v <- W^T W v / ||W^T W v||.

    Returns:
        sigma [convolutions], the norms ||W v|| of the advanced unit vectors; the vectors.
    """
    sigmas, advanced = [], []
    for weight, vector in zip(weights, vectors, strict=True):
        padding = weight.shape[-1] // 2
        for _ in range(iterations):
            image = F.conv2d(vector, weight, padding=padding)
            vector = F.conv_transpose2d(image, weight, padding=padding)
            vector = vector / (vector.norm() + 1e-12)
        sigmas.append(F.conv2d(vector, weight, padding=padding).norm() / (vector.norm() + 1e-12))
        advanced.append(vector)
    return torch.stack(sigmas), advanced
