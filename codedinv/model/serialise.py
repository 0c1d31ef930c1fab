"""A model's networks as files of a bundle: safetensors, and ONNX graphs checked against torch."""

from __future__ import annotations

from typing import Any

import torch
from safetensors.torch import save

from codedinv.model.anchors import Anchors, anchors_file
from codedinv.model.export import OPSET, to_onnx
from codedinv.model.manifest import ANCHORS, BACKBONE, ENCODER, LIGHT, WEIGHTS, Manifest, head_file
from codedinv.model.modules import TorchModules
from codedinv.model.shared_weights import with_shared_weights


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
    if modules.encoder is not None:
        exports[ENCODER] = to_onnx(modules.encoder, groups, "queries", "parity_queries")
    if modules.light is not None:
        exports[LIGHT] = to_onnx(modules.light, queries, "query", "logits")
    for task, head in modules.heads.items():
        if not manifest.is_identity(task):
            exports[head_file(task)] = to_onnx(head, embeddings, "embedding", task)
    files = {ANCHORS: anchors_file(anchors)}
    if weights := _weights(modules, manifest, shared_weights):
        files[WEIGHTS] = save(weights)
    for file, (content, _) in exports.items():
        shared = shared_weights and WEIGHTS in files
        files[file] = with_shared_weights(content, files[WEIGHTS], WEIGHTS) if shared else content
    errors = {file: error for file, (_, error) in exports.items()}
    return files, {
        "opset": OPSET, "shared_weights": shared_weights, "relative_error": errors,
    }  # fmt: skip


def _weights(
    modules: TorchModules, manifest: Manifest, shared_weights: bool
) -> dict[str, torch.Tensor]:
    """Those of the networks that can be rebuilt; of all where ONNX graphs are to refer to them."""
    graph_alone = manifest.architecture.without_modules()
    weights: dict[str, torch.Tensor] = {}
    for part, module in modules.parts().items():
        if part in graph_alone and not shared_weights:
            continue
        for key, value in module.state_dict().items():
            if isinstance(value, torch.Tensor):
                # A copy of its own: safetensors refuses weights that share memory (tied layers).
                plain = value.detach().cpu().clone(memory_format=torch.contiguous_format)
                weights[f"{part}.{key}"] = plain
    return weights


def _cycled(queries: torch.Tensor, count: int) -> torch.Tensor:
    return queries[torch.arange(count) % len(queries)]
