"""What `bundle.json` says of a model, and the names of a bundle's files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict

SCHEMA_VERSION = 1
FORMAT = "codedinv-bundle"
MANIFEST = "bundle.json"
WEIGHTS = "weights.safetensors"
ANCHORS = "anchors.safetensors"
BACKBONE = "backbone.onnx"
ENCODER = "encoder.onnx"
CONSISTENCY = "consistency.safetensors"  # optional: only calibrated bundles have it
LIGHT = "light.onnx"


def head_file(task: str) -> str:
    """Name of a task's ONNX file."""
    return f"head_{task}.onnx"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FileEntry(_Strict):
    """What `bundle.json` knows of another file."""

    sha256: str
    bytes: int


class CodeEntry(_Strict):
    """The (n, k) code: `coefficients` is the r x k matrix C of the generator [I; C]."""

    k: int
    r: int
    coefficients: list[list[float]]


class Architecture(_Strict):
    """JSON configs from which `codedinv.nn` rebuilds the networks; None: the bundle has no such."""

    backbone: dict[str, Any]
    encoder: dict[str, Any] | None
    heads: dict[str, dict[str, Any]]
    light: dict[str, Any] | None = None


class Manifest(_Strict):
    """The content of `bundle.json`, less its checksum and file table.

    Attributes:
        name: the model's name.
        input_shape: of one query.
        embedding_shape: of one result.
        tasks: outputs of each task's head, in order; the first is the default task.
        input_range: least and greatest value of a query that the model was made for; None: any.
        scheme: how the model is meant to be served; one of `SCHEMES`.
        fusion: weights of decoded and light answers by grouping (see codedinv.model.light.Fusion).
        metadata: metrics, macs, parameters, certificates, provenance: information, never needed
            to serve.
    """

    name: str
    code: CodeEntry
    input_shape: tuple[int, ...]
    embedding_shape: tuple[int, ...]
    tasks: dict[str, int]
    architecture: Architecture
    input_range: tuple[float, float] | None = None
    scheme: str = "invertible"
    fusion: dict[str, tuple[float, float]] | None = None
    metadata: dict[str, Any]

    def file_names(self) -> list[str]:
        """Every file that the bundle must have beside `bundle.json`."""
        encoder = [] if self.architecture.encoder is None else [ENCODER]
        light = [] if self.architecture.light is None else [LIGHT]
        return [WEIGHTS, ANCHORS, BACKBONE, *encoder, *light, *map(head_file, self.tasks)]


# Of these, "guided" needs a light model, and the others an encoder.
SCHEMES = ("invertible", "worker-encoded", "guided")


def with_scheme(
    manifest: Manifest, scheme: str, fusion: Mapping[str, tuple[float, float]] | None
) -> Manifest:
    """The manifest of a model that is meant for `scheme` and fuses with these weights.

    Raises:
        ValueError: an unknown scheme, or one that lacks the network it needs.
    """
    parts = manifest.architecture
    if scheme not in SCHEMES:
        raise ValueError(f"scheme: expected one of {', '.join(SCHEMES)}, got {scheme!r}")
    if scheme != "guided" and parts.encoder is None:
        raise ValueError(f"encoder: the scheme {scheme!r} needs one, got None")
    if parts.light is None and (scheme == "guided" or fusion is not None):
        raise ValueError("light: the scheme 'guided' and fusion need a light model, got None")
    weights = None if fusion is None else dict(fusion)
    return manifest.model_copy(update={"scheme": scheme, "fusion": weights})
