"""The invertible residual network (Behrmann et al. 2019) as Coded-InvNet uses it as backbone f.

Squeeze, then residual blocks y = x + F(x) whose branch F is a contraction: ELU-3x3-ELU-1x1-ELU-3x3
with every convolution's operator norm at most c, so Lip(F) <= c^3 < 1 (ELU is 1-Lipschitz) and
y determines x by the fixed point x = y - F(x). No injective padding (paper, section 4.1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codedinv.errors import NotConverged
from codedinv.nn import functional
from codedinv.nn.handles import StageHandles
from codedinv.nn.lipschitz import NormCertificate, bake_operator_norm, bound_operator_norm


@dataclass(frozen=True)
class StageConfig:
    """One stage: a 2^squeezes-fold space-to-depth, then residual blocks of one shape.

    Attributes:
        blocks: number of residual blocks.
        hidden: channels inside a block's branch.
        squeeze: side of the space-to-depth patch before the blocks (1: none).
    """

    blocks: int
    hidden: int
    squeeze: int = 2


@dataclass(frozen=True)
class IResNetConfig:
    """Shape and bound of an i-ResNet.

    Attributes:
        input_shape: (C, H, W) of a query.
        stages: from input to embedding.
        coefficient: operator-norm bound c of each convolution.
        mean, std: one value per channel; the backbone normalises its queries itself.
        padding: zero pixels added on every side before the first stage (the paper pads 28 to 32).
    """

    input_shape: tuple[int, int, int]
    stages: tuple[StageConfig, ...]
    coefficient: float = 0.9
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    padding: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.coefficient < 1:
            raise ValueError(f"coefficient: expected 0 < c < 1, got {self.coefficient}")
        channels, height, width = self.input_shape
        if len(self.mean) != channels or len(self.std) != channels or min(self.std) <= 0:
            raise ValueError(
                f"mean, std: expected {channels} values each and std > 0, "
                f"got {self.mean} and {self.std}"
            )
        squeeze = 1
        for stage in self.stages:
            squeeze *= stage.squeeze
        sides = (height + 2 * self.padding, width + 2 * self.padding)
        if not self.stages or sides[0] % squeeze or sides[1] % squeeze:
            raise ValueError(
                f"stages: padded size {sides} must be divisible by the squeezes' product {squeeze}"
            )

    @classmethod
    def from_dict(cls, config: dict[str, Any]) -> IResNetConfig:
        """Rebuilds a config from `asdict` or from the JSON of a bundle or recipe."""
        config = dict(config)
        config["stages"] = tuple(StageConfig(**stage) for stage in config["stages"])
        for name in ("input_shape", "mean", "std"):
            if name in config:
                config[name] = tuple(config[name])
        return cls(**config)


@dataclass(frozen=True)
class SolverStat:
    """How an inversion went, per sample.

    Attributes:
        iterations: [B] int64, fixed-point steps summed over all blocks.
        residual: [B] float, relative step |x_new - x| / max(|x_new|, |y|) left, largest of all
            blocks.
        converged: [B] bool, every block reached its tolerance.
    """

    iterations: Tensor
    residual: Tensor
    converged: Tensor


class Squeeze(nn.Module):
    """Space-to-depth by `side`: [B, C, H, W] <-> [B, C side^2, H / side, W / side]."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_unshuffle(x, self.side)

    def inverse(self, y: Tensor) -> Tensor:
        return F.pixel_shuffle(y, self.side)


class Normalise(nn.Module):
    """(x - mean) / std per channel, then zero padding; its inverse crops and undoes the scale."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float], padding: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).reshape(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).reshape(1, -1, 1, 1))
        self.padding = padding

    def forward(self, x: Tensor) -> Tensor:
        return F.pad((x - self.mean) / self.std, (self.padding,) * 4)

    def inverse(self, y: Tensor) -> Tensor:
        return F.pad(y, (-self.padding,) * 4) * self.std + self.mean


class InvertibleBlock(nn.Module):
    """y = x + conv3(elu(conv2(elu(conv1(elu(x)))))); the first of a network has no leading ELU.

    Args:
        channels: of x and y.
        hidden: of the branch.
        spatial: (H, W) of x.
        coefficient: operator-norm bound of each convolution.
        leading_elu: whether the branch begins with an ELU.
        bounded: register the spectral-norm parametrization (training), or plain weights (serving).
    """

    def __init__(
        self,
        channels: int,
        hidden: int,
        spatial: tuple[int, int],
        coefficient: float,
        leading_elu: bool,
        bounded: bool = True,
    ) -> None:
        super().__init__()
        self.spatial = spatial
        self.coefficient = coefficient
        self.leading_elu = leading_elu
        self.conv1 = nn.Conv2d(channels, hidden, 3, padding=1)
        self.conv2 = nn.Conv2d(hidden, hidden, 1)
        self.conv3 = nn.Conv2d(hidden, channels, 3, padding=1)
        if bounded:
            for convolution in (self.conv1, self.conv2, self.conv3):
                bound_operator_norm(convolution, spatial, coefficient)

    @property
    def weights(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """(w1, b1, w2, b2, w3, b3), as the kernels take them."""
        parts: list[Tensor] = []
        for convolution in (self.conv1, self.conv2, self.conv3):
            if convolution.bias is None:
                raise ValueError("a block's convolutions must have a bias")
            parts += [convolution.weight, convolution.bias]
        return (parts[0], parts[1], parts[2], parts[3], parts[4], parts[5])

    def branch(self, x: Tensor) -> Tensor:
        h = F.elu(x) if self.leading_elu else x
        return self.conv3(F.elu(self.conv2(F.elu(self.conv1(h)))))  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


class IResNet(nn.Module):
    """Invertible residual network: query [B, C, H, W] in [0, 1] -> embedding, and back.

    Args:
        config: see IResNetConfig.
        bounded: True in training (spectral-norm parametrization), False for baked weights.
        backend: of baked forwards and all inverses, see codedinv.nn.functional.

    Attributes:
        handles: the stages of a baked network as the kernels take them.
    """

    def __init__(
        self,
        config: IResNetConfig,
        bounded: bool = True,
        backend: functional.Backend = "auto",
    ) -> None:
        super().__init__()
        self.config = config
        self.bounded = bounded
        self.backend = backend
        self.handles = StageHandles()
        channels, height, width = config.input_shape
        height, width = height + 2 * config.padding, width + 2 * config.padding
        layers: list[nn.Module] = [Normalise(config.mean, config.std, config.padding)]
        first = True
        for stage in config.stages:
            if stage.squeeze > 1:
                layers.append(Squeeze(stage.squeeze))
                channels *= stage.squeeze**2
                height, width = height // stage.squeeze, width // stage.squeeze
            for _ in range(stage.blocks):
                layers.append(
                    InvertibleBlock(
                        channels,
                        stage.hidden,
                        (height, width),
                        config.coefficient,
                        leading_elu=not first,
                        bounded=bounded,
                    )
                )
                first = False
        self.layers = nn.ModuleList(layers)
        self.embedding_shape = (channels, height, width)

    @property
    def blocks(self) -> list[InvertibleBlock]:
        """All residual blocks in forward order."""
        return [layer for layer in self.layers if isinstance(layer, InvertibleBlock)]

    def config_dict(self) -> dict[str, Any]:
        return {"kind": "iresnet", **asdict(self.config)}

    def _runs(self) -> list[tuple[nn.Module, list[InvertibleBlock]]]:
        """(layer, []), or (first block, all blocks) of one shape, in forward order."""
        runs: list[tuple[nn.Module, list[InvertibleBlock]]] = []
        for layer in self.layers:
            if not isinstance(layer, InvertibleBlock):
                runs.append((layer, []))
                continue
            last = runs[-1][1] if runs else []
            if not last or last[0].conv1.out_channels != layer.conv1.out_channels:
                last = []
                runs.append((layer, last))
            last.append(layer)
        return runs

    def forward(self, x: Tensor) -> Tensor:
        for index, (layer, stage) in enumerate(self._runs()):
            if not stage:
                x = layer(x)
            elif self._takes_kernels(x, stage):
                pairs = [(block.weights, block.leading_elu) for block in stage]
                prepared = partial(self.handles.get, index, pairs, x)
                x = functional.residual_blocks(x, pairs, "triton", prepared)
            else:
                for block in stage:
                    x = block(x)
        return x

    def _takes_kernels(self, x: Tensor, stage: list[InvertibleBlock]) -> bool:
        """Whether a stage's forward goes to the kernels; bounded weights are still in training."""
        if self.bounded or self.backend == "torch":
            return False
        pairs = [(stage[0].weights, stage[0].leading_elu)]
        return functional.chosen_backend("forward", x, pairs, self.backend) == "triton"

    @torch.no_grad()
    def inverse(
        self, z: Tensor, tol: float = 1e-6, max_iter: int = 200
    ) -> tuple[Tensor, SolverStat]:
        """Finds the query whose embedding is z.

        Args:
            z: [B, *embedding_shape].
            tol: relative fixed-point step at which a sample is done with a block; clamped to what
                z's dtype can reach.
            max_iter: limit per block.

        Returns:
            (queries [B, C, H, W], SolverStat).

        Raises:
            ValueError: z has another shape.
            NotConverged: some sample did not reach the tolerance (a branch is no contraction, or
                z is not finite); the message says how many and how far off.

        Source: paper section 4.1; Behrmann et al., algorithm 1, with a tolerance for its fixed
        number of iterations.
        """
        if z.ndim != 4 or tuple(z.shape[1:]) != self.embedding_shape:
            raise ValueError(f"z: expected (B, *{self.embedding_shape}), got {tuple(z.shape)}")
        batch = z.shape[0]
        iterations = torch.zeros(batch, dtype=torch.int64, device=z.device)
        residual = torch.zeros(batch, device=z.device)
        converged = torch.ones(batch, dtype=torch.bool, device=z.device)
        for index, (layer, stage) in reversed(list(enumerate(self._runs()))):
            if stage:
                pairs = [(block.weights, block.leading_elu) for block in stage]
                prepared = None if self.bounded else partial(self.handles.get, index, pairs, z)
                z, steps, step, done = functional.invert(
                    z, pairs, tol, max_iter, self.backend, prepared
                )
                iterations += steps
                residual = torch.maximum(residual, step.to(residual.dtype))
                converged &= done
            elif isinstance(layer, (Squeeze, Normalise)):
                z = layer.inverse(z)
        if not bool(converged.all()):
            raise NotConverged(
                f"{int((~converged).sum())} of {batch} samples did not reach the relative step "
                f"{tol:g} (or what {z.dtype} reaches) in {max_iter} iterations per block "
                f"(largest left: {float(residual.max()):.3g})"
            )
        return z, SolverStat(iterations, residual, converged)

    def bake(self) -> tuple[IResNet, list[dict[str, NormCertificate]]]:
        """Makes a copy with plain weights for serving.

        Returns:
            The plain network (eval mode) and, for each block, the certificates of conv1..conv3.
        """
        plain = IResNet(self.config, bounded=False).eval()
        certificates = []
        for source, target in zip(self.blocks, plain.blocks, strict=True):
            proofs = {}
            for name in ("conv1", "conv2", "conv3"):
                convolution, proof = bake_operator_norm(
                    getattr(source, name), source.spatial, source.coefficient
                )
                setattr(target, name, convolution)
                proofs[name] = proof
            certificates.append(proofs)
        return plain, certificates
