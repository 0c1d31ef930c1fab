"""A bundle's networks as torch modules: assembled from training, or rebuilt from a bundle."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from codedinv.errors import BundleError
from codedinv.model.manifest import WEIGHTS, Manifest
from codedinv.nn import build_backbone, build_encoder, build_head, build_light


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


def _served_copy(module: nn.Module) -> nn.Module:
    return copy.deepcopy(module).cpu().eval()


def _filled(module: nn.Module, tensors: dict[str, torch.Tensor], prefix: str) -> nn.Module:
    state = {key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)}
    module.load_state_dict(state)
    return module.eval()
