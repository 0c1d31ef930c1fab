"""A model's networks as files of a bundle: safetensors, and ONNX graphs checked against torch."""

from __future__ import annotations

from typing import Any

import torch
from safetensors.torch import save

from codedinv.model.anchors import Anchors
from codedinv.model.export import OPSET, to_onnx, with_shared_weights
from codedinv.model.manifest import ANCHORS, BACKBONE, ENCODER, LIGHT, WEIGHTS, Manifest, head_file
from codedinv.model.modules import TorchModules


def serialise(
    modules: TorchModules, manifest: Manifest, anchors: Anchors, shared_weights: bool
) -> tuple[dict[str, bytes], dict[str, Any]]:
    """Makes the files of a bundle, with every ONNX graph checked against torch.

    Args:
        modules: the networks.
        manifest: of the bundle.
        anchors: of the bundle; the networks are checked on them.
        shared_weights: let the ONNX files refer to the safetensors file for their weights.

    Returns:
        {file name: content}, and what was found: {"opset", "shared_weights", "relative_error":
        {file name: float}}.

    Raises:
        BundleError: an exported graph differs from its module by more than 1e-4.
    """
    stored = torch.from_numpy(anchors.queries)
    queries = _cycled(stored, 3)
    groups = torch.stack([_cycled(stored.roll(-i, 0), manifest.code.k) for i in range(3)])
    with torch.no_grad():
        embeddings = modules.backbone(queries)
    exports = {BACKBONE: to_onnx(modules.backbone, queries, "query", "embedding")}
    named = {"backbone": modules.backbone}
    if modules.encoder is not None:
        exports[ENCODER] = to_onnx(modules.encoder, groups, "queries", "parity_queries")
        named["encoder"] = modules.encoder
    if modules.light is not None:
        exports[LIGHT] = to_onnx(modules.light, queries, "query", "logits")
        named["light"] = modules.light
    for task, head in modules.heads.items():
        exports[head_file(task)] = to_onnx(head, embeddings, "embedding", task)
        named[f"head.{task}"] = head
    weights = {
        f"{name}.{key}": value
        for name, module in named.items()
        for key, value in module.state_dict().items()
    }
    stored_weights = save({key: t.detach().cpu().contiguous() for key, t in weights.items()})
    files = {
        WEIGHTS: stored_weights,
        ANCHORS: save({"queries": stored, "embeddings": torch.from_numpy(anchors.embeddings)}),
    }
    for file, (content, _) in exports.items():
        shared = (
            with_shared_weights(content, stored_weights, WEIGHTS) if shared_weights else content
        )
        files[file] = shared
    errors = {file: error for file, (_, error) in exports.items()}
    return files, {
        "opset": OPSET, "shared_weights": shared_weights, "relative_error": errors,
    }  # fmt: skip


def _cycled(queries: torch.Tensor, count: int) -> torch.Tensor:
    return queries[torch.arange(count) % len(queries)]
