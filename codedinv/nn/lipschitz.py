"""Convolutions with a bounded spectral norm of the *operator*, and proof of the bound.

A convolution is a linear map from images to images. Its largest singular value depends on the
spatial size it is applied to, so the power iteration runs through `conv2d` and
`conv_transpose2d` at the true size (Gouk et al. 2018; Behrmann et al. 2019, section 2.1), not on
the reshaped kernel.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

# A Gram matrix of this order costs about 0.1 s in float64; beyond it, power iteration is used.
_LARGEST_DENSE_GRAM = 1600


class OperatorNormBound(nn.Module):
    """Parametrization: scales a convolution's weight so that its operator norm is at most c.

    The weight is left alone while its norm is below c, and divided by norm / c above it. Each
    forward pass in training mode advances the power iteration; in eval mode it is frozen.

    Args:
        weight: [O, I, k, k], k odd, stride 1, padding (k - 1) / 2.
        spatial: (H, W) the convolution is applied at.
        coefficient: the bound c, 0 < c < 1 for an invertible residual block.
        iterations: power iterations per training forward pass.
    """

    vector: Tensor

    def __init__(
        self, weight: Tensor, spatial: tuple[int, int], coefficient: float, iterations: int = 1
    ) -> None:
        super().__init__()
        # A 1x1 convolution acts on each pixel alone: its norm is the matrix's, at any size.
        self.spatial = (1, 1) if weight.shape[-1] == 1 else spatial
        self.coefficient = coefficient
        self.iterations = iterations
        start = torch.randn(1, weight.shape[1], *self.spatial)
        self.register_buffer("vector", start / start.norm())
        with torch.no_grad():
            self._advance(weight.detach(), 20)

    def _advance(self, weight: Tensor, iterations: int) -> None:
        padding = weight.shape[-1] // 2
        vector = self.vector
        for _ in range(iterations):
            image = F.conv2d(vector, weight, padding=padding)
            vector = F.conv_transpose2d(image, weight, padding=padding)
            vector = vector / (vector.norm() + 1e-12)
        self.vector.copy_(vector)

    def forward(self, weight: Tensor) -> Tensor:
        with torch.autocast(weight.device.type, enabled=False):
            if self.training:
                with torch.no_grad():
                    self._advance(weight.detach(), self.iterations)
            # Copied, so that a later in-place advance does not touch what backward saved.
            norm = F.conv2d(self.vector.clone(), weight, padding=weight.shape[-1] // 2).norm()
            return weight / torch.clamp(norm / self.coefficient, min=1.0)


def bound_operator_norm(
    convolution: nn.Conv2d, spatial: tuple[int, int], coefficient: float
) -> nn.Conv2d:
    """Registers `OperatorNormBound` on the weight of a convolution and returns it."""
    bound = OperatorNormBound(convolution.weight.detach(), spatial, coefficient)
    # unsafe: the check would run the module once more; shape and dtype are kept by construction.
    parametrize.register_parametrization(convolution, "weight", bound, unsafe=True)
    return convolution


@dataclass(frozen=True)
class NormCertificate:
    """What is known of one convolution's operator norm.

    Attributes:
        sigma: the operator norm (float64 arithmetic).
        method: "eigenvalue" (of the Gram matrix of the whole operator) or "power iteration"
            (a value converged to `tolerance` from below).
        tolerance: relative uncertainty of sigma.
    """

    sigma: float
    method: str
    tolerance: float


@torch.no_grad()
def operator_norm(weight: Tensor, spatial: tuple[int, int]) -> NormCertificate:
    """Computes the operator norm of a stride-1, same-padded convolution in float64.

    Args:
        weight: [O, I, k, k].
        spatial: (H, W) it is applied at.

    Returns:
        The norm: from the eigenvalues of the smaller Gram matrix where that has at most 1,600
        rows (every stage of the small recipes), else from a power iteration run until it moves
        by less than 1e-9 relative in one step.
    """
    weight = weight.detach().double().cpu()
    if weight.shape[-1] == 1:
        spatial = (1, 1)
    padding = weight.shape[-1] // 2
    outputs, inputs = weight.shape[:2]
    size = min(inputs, outputs) * spatial[0] * spatial[1]
    if size <= _LARGEST_DENSE_GRAM:
        basis = torch.eye(size, dtype=torch.float64).reshape(size, min(inputs, outputs), *spatial)
        apply = F.conv2d if inputs <= outputs else F.conv_transpose2d
        rows = apply(basis, weight, padding=padding).reshape(size, -1)
        sigma = torch.linalg.eigvalsh(rows @ rows.T)[-1].clamp(min=0).sqrt().item()
        return NormCertificate(sigma, "eigenvalue", 1e-10)
    generator = torch.Generator().manual_seed(0)
    vector = torch.randn(1, inputs, *spatial, dtype=torch.float64, generator=generator)
    sigma = 0.0
    for _ in range(20_000):
        image = F.conv2d(vector / vector.norm(), weight, padding=padding)
        vector = F.conv_transpose2d(image, weight, padding=padding)
        previous, sigma = sigma, image.norm().item()
        if sigma - previous <= 1e-9 * sigma:
            break
    return NormCertificate(sigma, "power iteration", 1e-4)


@torch.no_grad()
def bake_operator_norm(
    convolution: nn.Conv2d, spatial: tuple[int, int], coefficient: float
) -> tuple[nn.Conv2d, NormCertificate]:
    """Turns a bounded convolution into a plain one whose norm is certified to be at most c.

    The running estimate of training may lie below the true norm (one power iteration per step);
    where the certificate finds it above c, the weight is scaled down to c.

    Args:
        convolution: with or without the parametrization; stride 1, same padding.
        spatial: (H, W) it is applied at.
        coefficient: the bound c.

    Returns:
        A plain `nn.Conv2d` and the certificate of its weight.
    """
    convolution_weight = convolution.weight.detach()
    certificate = operator_norm(convolution_weight, spatial)
    # The margin covers the certificate's own uncertainty and the rounding to float32.
    limit = coefficient * (1 - certificate.tolerance - 1e-6)
    if certificate.sigma > limit:
        scale = limit / certificate.sigma
        convolution_weight = convolution_weight * scale
        certificate = NormCertificate(limit, certificate.method, certificate.tolerance)
    plain = nn.Conv2d(
        convolution.in_channels,
        convolution.out_channels,
        convolution.kernel_size[0],
        padding=convolution.kernel_size[0] // 2,
    )
    plain.weight.copy_(convolution_weight)
    if convolution.bias is not None and plain.bias is not None:
        plain.bias.copy_(convolution.bias)
    return plain, certificate
