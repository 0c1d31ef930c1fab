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
from codedinv.model.architecture import rebuild
from codedinv.model.manifest import WEIGHTS, Manifest
from codedinv.nn import IResNet


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

    def parts(self) -> dict[str, nn.Module]:
        """Those that there are: "backbone", "encoder", "light" and "head.TASK"."""
        single = {"backbone": self.backbone, "encoder": self.encoder, "light": self.light}
        heads = {f"head.{task}": head for task, head in self.heads.items()}
        return {name: module for name, module in single.items() if module is not None} | heads


def assemble(
    backbone: nn.Module,
    heads: Mapping[str, nn.Module],
    encoder: nn.Module | None,
    light: nn.Module | None = None,
) -> TorchModules:
    """Copies all parts to the CPU in eval mode, the backbone baked where it can be.

    Copies, so that training may go on without changing a model that was made of its networks.

    Raises:
        TypeError: a part is no module, or heads are not by task.
        ValueError: a part cannot be copied.
    """
    if not isinstance(heads, Mapping):
        raise TypeError(
            "heads: expected torch modules by task, such as {'label': head}, got a "
            f"{type(heads).__name__}"
        )
    certificates = None
    if isinstance(backbone, IResNet):
        backbone, proofs = backbone.bake()
        certificates = [{name: asdict(proof) for name, proof in block.items()} for block in proofs]
    return TorchModules(
        _served_copy("backbone", backbone),
        None if encoder is None else _served_copy("encoder", encoder),
        {task: _served_copy(f"heads: {task!r}", head) for task, head in heads.items()},
        None if light is None else _served_copy("light", light),
        certificates,
    )


def load_modules(folder: Path, manifest: Manifest, trust_factory: bool = False) -> TorchModules:
    """Rebuilds the networks from a bundle's configs and safetensors.

    Args:
        folder: of the bundle.
        manifest: of the bundle.
        trust_factory: import and call the factories that the bundle names.

    Raises:
        BundleError: a network that cannot be rebuilt, or weights that do not fit it.
    """
    path = folder / WEIGHTS
    architecture = manifest.architecture
    built: dict[str, nn.Module] = {}
    for part, entry in architecture.parts().items():
        try:
            built[part] = rebuild(part, entry, trust_factory)
        except Exception as error:  # a factory may raise anything
            raise BundleError(f"{folder}: {error}") from error
    try:
        # A network of which there is no weight, such as nn.Identity, may be all that there is.
        tensors = load_file(path) if path.is_file() else {}
        for part, module in built.items():
            _fill(module, tensors, f"{part}.")
    except (SafetensorError, RuntimeError, ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{path} does not fit the bundle's architecture: {error}") from error
    return TorchModules(
        built["backbone"],
        built.get("encoder"),
        {task: built[f"head.{task}"] for task in manifest.tasks},
        built.get("light"),
        manifest.metadata.get("certificates"),
    )


def _served_copy(part: str, module: nn.Module) -> nn.Module:
    """A float32 copy on the CPU, in eval mode; of a compiled module, the original."""
    if not isinstance(module, nn.Module):
        raise TypeError(f"{part}: expected a torch.nn.Module, got {type(module).__name__}")
    module = getattr(module, "_orig_mod", module)
    try:
        return copy.deepcopy(module).cpu().float().eval()
    except RuntimeError as error:  # old-style weight_norm, hooks that hold tensors
        raise ValueError(f"{part}: the module cannot be copied: {error}") from error


def _fill(module: nn.Module, tensors: dict[str, torch.Tensor], prefix: str) -> None:
    state = {key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)}
    module.load_state_dict(state)
    module.eval()
