"""What a bundle says of its networks: shapes, tasks, MACs and parameters, found by running each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from codedinv.coding import Code
from codedinv.model.anchors import Anchors
from codedinv.model.manifest import Architecture, CodeEntry, Manifest
from codedinv.model.modules import TorchModules
from codedinv.model.names import check_name, check_task
from codedinv.nn.macs import macs


@torch.no_grad()
def describe(
    name: str,
    code: Code,
    modules: TorchModules,
    anchors_queries: Any,
    metadata: Mapping[str, Any],
) -> tuple[Manifest, Anchors]:
    """Finds shapes, MACs and parameters by running each part once.

    Raises:
        ValueError: a bad name, too few anchors, or parts whose shapes do not fit together.
    """
    check_name(name)
    for task in modules.heads:
        check_task(task)
    if not modules.heads:
        raise ValueError("heads: expected at least one task")
    queries = torch.as_tensor(anchors_queries, dtype=torch.float32).cpu()
    if queries.ndim < 2 or len(queries) < max(code.k - 1, 1):
        raise ValueError(
            f"anchors_queries: expected (A, *input) with A >= {max(code.k - 1, 1)}, "
            f"got {tuple(queries.shape)}"
        )
    embeddings = modules.backbone(queries)
    group = queries[torch.arange(code.k) % len(queries)][None]
    if modules.encoder is not None:
        _check_encoder(modules.encoder, group, code)
    outputs = {task: head(embeddings) for task, head in modules.heads.items()}
    for task, output in outputs.items():
        if output.ndim != 2:
            raise ValueError(
                f"heads: {task!r} must give (B, outputs), got {tuple(output.shape)} for "
                f"{len(queries)} embeddings"
            )
    tasks = {task: output.shape[1] for task, output in outputs.items()}
    if modules.light is not None:
        _check_light(modules.light, queries, sum(tasks.values()))
    inputs = {"backbone": queries[:1], "encoder": group, "light": queries[:1]}
    single = {
        name: (module, inputs[name])
        for name, module in (
            ("backbone", modules.backbone),
            ("encoder", modules.encoder),
            ("light", modules.light),
        )
        if module is not None
    }
    manifest = Manifest(
        name=name,
        code=CodeEntry(k=code.k, r=code.r, coefficients=np.asarray(code.coefficients).tolist()),
        input_shape=tuple(queries.shape[1:]),
        embedding_shape=tuple(embeddings.shape[1:]),
        tasks=tasks,
        architecture=Architecture(
            backbone=_config(modules.backbone),
            encoder=None if modules.encoder is None else _config(modules.encoder),
            heads={task: _config(head) for task, head in modules.heads.items()},
            light=None if modules.light is None else _config(modules.light),
        ),
        metadata={
            **metadata,
            "macs": {
                **{name: macs(module, example) for name, (module, example) in single.items()},
                "head": {task: macs(head, embeddings[:1]) for task, head in modules.heads.items()},
            },
            "parameters": {
                **{name: _parameters(module) for name, (module, _) in single.items()},
                "head": {task: _parameters(head) for task, head in modules.heads.items()},
            },
            "certificates": modules.certificates,
        },
    )
    return manifest, Anchors(queries.numpy(), embeddings.numpy())


def _check_encoder(encoder: nn.Module, group: torch.Tensor, code: Code) -> None:
    expected = (1, code.r, *group.shape[2:])
    try:
        parity = encoder(group)
    except RuntimeError as error:
        raise ValueError(
            f"encoder: it takes no group of k = {code.k} queries {tuple(group.shape)}: {error}"
        ) from error
    if tuple(parity.shape) != expected:
        raise ValueError(
            f"encoder: expected (1, {code.k}, *input) -> {expected}, got {tuple(parity.shape)}"
        )


def _check_light(light: nn.Module, queries: torch.Tensor, outputs: int) -> None:
    got = tuple(light(queries).shape)
    if got != (len(queries), outputs):
        raise ValueError(
            f"light: expected (B, {outputs}), the outputs of all tasks, got {got} for "
            f"{len(queries)} queries"
        )


def _config(module: nn.Module) -> dict[str, Any]:
    config_dict = getattr(module, "config_dict", None)
    if config_dict is None:
        raise ValueError(
            f"{type(module).__name__} has no config_dict(), so a bundle could not rebuild it"
        )
    return dict(config_dict())


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
