"""A bundle's networks as torch modules: assembled from training, described, and written out."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from codedinv.bundle_folder import (
    ANCHORS,
    BACKBONE,
    ENCODER,
    LIGHT,
    WEIGHTS,
    Architecture,
    CodeEntry,
    Manifest,
    head_file,
)
from codedinv.coding import Code
from codedinv.errors import BundleError
from codedinv.export import OPSET, to_onnx, with_shared_weights
from codedinv.nn import build_backbone, build_encoder, build_head, build_light
from codedinv.nn.macs import macs

if TYPE_CHECKING:
    from codedinv.bundle import Anchors


@dataclass(frozen=True)
class TorchModules:
    """The networks of a model, in eval mode; None where there is none.

    `certificates` is None where nothing was baked.
    """

    backbone: nn.Module
    encoder: nn.Module | None
    heads: Mapping[str, nn.Module]
    light: nn.Module | None = None
    certificates: list[dict[str, Any]] | None = None


def assemble(
    backbone: nn.Module,
    heads: Mapping[str, nn.Module],
    encoder: nn.Module | None,
    light: nn.Module | None = None,
) -> TorchModules:
    """Copies all parts to the CPU in eval mode, the backbone baked where it can be.

    Copies, so that training may go on without changing a model that was made of its networks.
    """
    certificates = None
    bake = getattr(backbone, "bake", None)
    if bake is not None:
        backbone, proofs = bake()
        certificates = [{name: asdict(proof) for name, proof in block.items()} for block in proofs]
    return TorchModules(
        _served_copy(backbone),
        None if encoder is None else _served_copy(encoder),
        {task: _served_copy(head) for task, head in heads.items()},
        None if light is None else _served_copy(light),
        certificates,
    )


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
    from codedinv.bundle import Anchors

    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise ValueError(f"name: expected letters, digits, '.', '-' and '_', got {name!r}")
    for task in modules.heads:
        if not re.fullmatch(r"[A-Za-z0-9_]+", task):
            raise ValueError(f"heads: task names take letters, digits and '_', got {task!r}")
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


def load_modules(folder: Path, manifest: Manifest) -> TorchModules:
    """Rebuilds the networks from a bundle's configs and safetensors.

    Raises:
        BundleError: an unknown network kind, or weights that do not fit it.
    """
    path = folder / WEIGHTS
    architecture = manifest.architecture
    try:
        tensors = load_file(path)
        backbone = _filled(build_backbone(architecture.backbone), tensors, "backbone.")
        encoder = light = None
        if architecture.encoder is not None:
            encoder = _filled(build_encoder(architecture.encoder), tensors, "encoder.")
        if architecture.light is not None:
            light = _filled(build_light(architecture.light), tensors, "light.")
        heads = {
            task: _filled(build_head(architecture.heads[task]), tensors, f"head.{task}.")
            for task in manifest.tasks
        }
    except (SafetensorError, RuntimeError, ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{path} does not fit the bundle's architecture: {error}") from error
    return TorchModules(backbone, encoder, heads, light, manifest.metadata.get("certificates"))


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


def _served_copy(module: nn.Module) -> nn.Module:
    return copy.deepcopy(module).cpu().eval()


def _cycled(queries: torch.Tensor, count: int) -> torch.Tensor:
    return queries[torch.arange(count) % len(queries)]


def _config(module: nn.Module) -> dict[str, Any]:
    config_dict = getattr(module, "config_dict", None)
    if config_dict is None:
        raise ValueError(
            f"{type(module).__name__} has no config_dict(), so a bundle could not rebuild it"
        )
    return dict(config_dict())


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _filled(module: nn.Module, tensors: dict[str, torch.Tensor], prefix: str) -> nn.Module:
    state = {key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)}
    module.load_state_dict(state)
    return module.eval()
