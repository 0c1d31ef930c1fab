"""Gradients of blocks, and of their inverse by implicit differentiation.

Written out instead of recorded, since an operator's backward runs below autograd. For x with
y = x + F(x), dL/dy = (I + J^T)^-1 dL/dx, block by block: the linear system is solved by the fixed
point v <- g - J^T v, as contractive as F itself.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from . import reference
from .reference import Block


def forward_gradients(
    grad: Tensor, x: Tensor, blocks: Sequence[Block]
) -> tuple[Tensor, list[Tensor]]:
    """Gradients of a loss by x and by the weights, y = `residual_blocks`(x, blocks).

    Args:
        grad: the loss by y, [B, C, H, W]. x: the input.
        blocks: in forward order.

    Returns:
        dL/dx like x; dL/dweights, six of each block.
    """
    branches = []
    for parts, leading_elu in blocks:
        branches.append(reference.Linearised(x, parts, leading_elu))
        x = x + branches[-1].value
    weight_grads: list[Tensor] = []
    for branch in reversed(branches):
        weight_grads = [*branch.weight_gradients(grad), *weight_grads]
        grad = grad + branch.pull(grad)
    return grad, weight_grads


def inverse_gradients(
    grad: Tensor, x: Tensor, blocks: Sequence[Block], tolerance: float, max_iter: int
) -> tuple[Tensor, list[Tensor]]:
    """Gradients of a loss by y and by the weights, x = `invert`(y, blocks).

    Args:
        grad: the loss by x, [B, C, H, W]. x: the solution.
        blocks: in forward order.
        tolerance: relative step of the whole batch at which a block's system is solved.
        max_iter: iterations it may take.

    Returns:
        dL/dy like x; dL/dweights, six of each block.
    """
    weight_grads: list[Tensor] = []
    for parts, leading_elu in blocks:
        branch = reference.Linearised(x, parts, leading_elu)
        solution = grad
        for _ in range(max_iter):
            updated = grad - branch.pull(solution)
            step = (updated - solution).norm() / (updated.norm() + 1e-12)
            solution = updated
            if not step > tolerance:
                break
        weight_grads += [-tensor for tensor in branch.weight_gradients(solution)]
        grad = solution
        x = x + branch.value
    return grad, weight_grads
