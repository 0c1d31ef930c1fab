"""What the history of a training shows; published numbers are `codedinv evaluate`'s."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from codedinv.coding import Code
from codedinv.data import Examples
from codedinv.training.erasures import decoded_error, erasures

_BATCH = 1000


@torch.no_grad()
def accuracy(
    backbone: nn.Module, head: nn.Module, examples: Examples, outputs: int | None = None
) -> float:
    """Share of right answers in percent.

    Args:
        backbone, head: on one device; the head alone where the backbone is the identity.
        examples: to ask for.
        outputs: classes of the first task; None: there is one.
    """
    backbone.eval()
    head.eval()
    device = next((p.device for m in (head, backbone) for p in m.parameters()), torch.device("cpu"))
    right = 0
    for at in range(0, len(examples), _BATCH):
        x, y = _tensors(examples, slice(at, at + _BATCH), device)
        right += int((head(backbone(x))[:, :outputs].argmax(1) == y).sum())
    return 100.0 * right / len(examples)


@torch.no_grad()
def degraded_accuracy(
    backbone: nn.Module,
    head: nn.Module,
    encoder: nn.Module,
    code: Code,
    examples: Examples,
    outputs: int | None = None,
) -> dict[str, float]:
    """A_n and A_d (percent) over one random grouping, for the training history.

    With r = 1 every slot is lost in turn; with r > 1 a fixed sample of patterns. The published
    number, over several groupings and with intervals, is `codedinv evaluate`'s.

    Args:
        backbone, head, encoder: on one device.
        code: of the encoder.
        examples: k or more.
        outputs: classes of the first task; None: there is one.
    """
    for module in (backbone, head, encoder):
        module.eval()
    device = next(encoder.parameters()).device
    groups = len(examples) // code.k
    order = np.random.default_rng(0).permutation(len(examples))[: groups * code.k]
    coefficients = torch.tensor(code.coefficients, dtype=torch.float32, device=device)
    right = decoded_right = decoded_count = 0
    patterns = erasures(code, np.random.default_rng(0))
    parts = np.array_split(order.reshape(groups, code.k), max(1, groups * code.k // _BATCH))
    for part in parts:
        x, y = _tensors(examples, part.ravel(), device)
        y = y.reshape(part.shape)
        exact = backbone(x)
        right += int((head(exact)[:, :outputs].argmax(1) == y.flatten()).sum())
        exact = exact.reshape(len(part), code.k, *exact.shape[1:])
        parities = encoder(x.reshape(len(part), code.k, *x.shape[1:]))
        wanted = torch.einsum("rk,gk...->gr...", coefficients, exact)
        error = backbone(parities.flatten(0, 1)).reshape(wanted.shape) - wanted
        for erasure in patterns:
            missing = list(erasure.missing)
            decoded = exact[:, missing] + decoded_error(error, erasure)
            answers = head(decoded.flatten(0, 1))[:, :outputs].argmax(1)
            decoded_right += int((answers == y[:, missing].flatten()).sum())
            decoded_count += answers.numel()
    return {
        "normal_accuracy": 100.0 * right / order.size,
        "degraded_accuracy": 100.0 * decoded_right / decoded_count,
    }


def _tensors(
    examples: Examples, picked: slice | np.ndarray, device: torch.device
) -> tuple[Tensor, Tensor]:
    x = torch.from_numpy(examples.queries(picked)).to(device)
    return x, torch.from_numpy(examples.labels[picked]).to(device)
