"""The networks of a model, whichever runtime they run in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from codedinv.model.manifest import BACKBONE, ENCODER, LIGHT, Manifest, head_file
from codedinv.model.runtimes import IdentityNetwork, Network, OnnxNetwork, TorchNetwork

if TYPE_CHECKING:
    from codedinv.model.modules import TorchModules


@dataclass(frozen=True)
class Networks:
    """What can be called of a model; None where it has no such network.

    Attributes:
        contents: the ONNX files by name, of a model that was made of such and has no folder yet.
    """

    backbone: Network
    heads: Mapping[str, Network]
    encoder: Network | None = None
    light: Network | None = None
    contents: Mapping[str, bytes] = field(default_factory=dict)


def onnx_networks(
    manifest: Manifest, sources: Mapping[str, Path | bytes], threads: int
) -> Networks:
    """Networks that run in ONNX Runtime.

    Args:
        manifest: of the model.
        sources: for each of `Manifest.onnx_files` the file, or its content.
        threads: of each session.

    Raises:
        BundleError: ONNX Runtime cannot load one.
    """

    def opened(file: str) -> Network | None:
        if file not in sources:
            return None
        network = OnnxNetwork(sources[file], threads)
        network.open()  # a front end's first query should not wait for it
        return network

    heads = {task: opened(head_file(task)) or IdentityNetwork() for task in manifest.tasks}
    # Front ends leave the backbone to workers: it is opened only where it is called.
    backbone = OnnxNetwork(sources[BACKBONE], threads)
    contents = {name: source for name, source in sources.items() if isinstance(source, bytes)}
    return Networks(backbone, heads, opened(ENCODER), opened(LIGHT), contents)


def torch_networks(modules: TorchModules) -> Networks:
    """Networks that run in torch."""
    return Networks(
        TorchNetwork(modules.backbone),
        {task: TorchNetwork(head) for task, head in modules.heads.items()},
        None if modules.encoder is None else TorchNetwork(modules.encoder),
        None if modules.light is None else TorchNetwork(modules.light),
    )
