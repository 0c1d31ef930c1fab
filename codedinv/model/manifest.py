"""What `bundle.json` says of a model, and the names of a bundle's files."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from codedinv.coding import Code

SCHEMA_VERSION = 1
FORMAT = "codedinv-bundle"
MANIFEST = "bundle.json"
WEIGHTS = "weights.safetensors"
ANCHORS = "anchors.safetensors"
BACKBONE = "backbone.onnx"
ENCODER = "encoder.onnx"
CONSISTENCY = "consistency.safetensors"  # optional: only calibrated bundles have it
LIGHT = "light.onnx"

# Kinds of network that are none of `codedinv.nn`; see `Architecture`.
FACTORY = "factory"
ONNX = "onnx"
IDENTITY = "identity"


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
    """How torch modules of the networks are rebuilt; None: the model has no such network.

    Each is one of

    - {"kind": "iresnet" | "dense" | ..., ...}: a network of `codedinv.nn`;
    - {"kind": "factory", "factory": "package.module:callable", "arguments": {...}}: whatever that
      callable returns; it is only called for one who trusts the bundle;
    - {"kind": "onnx"}: it cannot be rebuilt, there is its ONNX graph alone;
    - {"kind": "identity"}, of a head: the embedding is the answer, so there is no file either.
    """

    backbone: dict[str, Any]
    encoder: dict[str, Any] | None
    heads: dict[str, dict[str, Any]]
    light: dict[str, Any] | None = None

    def parts(self) -> dict[str, dict[str, Any]]:
        """The networks that there are: "backbone", "encoder", "light" and "head.TASK"."""
        single = {"backbone": self.backbone, "encoder": self.encoder, "light": self.light}
        heads = {f"head.{task}": config for task, config in self.heads.items()}
        return {name: config for name, config in single.items() if config is not None} | heads

    def rebuildable(self, trust_factory: bool) -> bool:
        """Can torch modules of all networks be made?"""
        never = {ONNX} if trust_factory else {ONNX, FACTORY}
        return never.isdisjoint(config.get("kind") for config in self.parts().values())

    def without_modules(self) -> list[str]:
        """The networks of which there is the ONNX graph alone."""
        return [name for name, config in self.parts().items() if config.get("kind") == ONNX]


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
        parts = self.architecture.parts()
        kinds = {config.get("kind") for config in parts.values()}
        weights = [WEIGHTS] if kinds - {ONNX, IDENTITY} else []
        return [*weights, ANCHORS, *self.onnx_files()]

    def onnx_files(self) -> list[str]:
        """The ONNX graphs among them."""
        parts = self.architecture
        encoder = [] if parts.encoder is None else [ENCODER]
        light = [] if parts.light is None else [LIGHT]
        heads = [head_file(task) for task in self.tasks if not self.is_identity(task)]
        return [BACKBONE, *encoder, *light, *heads]

    def is_identity(self, task: str) -> bool:
        """Is the embedding itself the answer to this task?"""
        return self.architecture.heads.get(task, {}).get("kind") == IDENTITY


def manifest_of(
    name: str,
    code: Code,
    input_shape: Sequence[int],
    embedding_shape: Sequence[int],
    tasks: Mapping[str, int],
    entries: Mapping[str, dict[str, Any]],
    metadata: Mapping[str, Any],
) -> Manifest:
    """The manifest of a model whose parts have been looked at.

    Args:
        entries: of `Architecture`, by part as in `Architecture.parts`. A head without one is the
            identity.
        name, code, input_shape, embedding_shape, tasks, metadata: as in `Manifest`.
    """
    identity = {"kind": IDENTITY}
    return Manifest(
        name=name,
        code=CodeEntry(k=code.k, r=code.r, coefficients=code.coefficients.tolist()),
        input_shape=tuple(input_shape),
        embedding_shape=tuple(embedding_shape),
        tasks=dict(tasks),
        architecture=Architecture(
            backbone=entries["backbone"],
            encoder=entries.get("encoder"),
            heads={task: entries.get(f"head.{task}", identity) for task in tasks},
            light=entries.get("light"),
        ),
        metadata=dict(metadata),
    )


ENCODED = ("invertible", "worker-encoded")  # these need an encoder; "guided" needs a light model
GROUPED = (*ENCODED, "guided")
SCHEMES = (*GROUPED, "replication", "uncoded")
GROUPINGS = ("arrival", "alike")  # ways to make groups, each with weights of fusion of its own


def with_scheme(
    manifest: Manifest,
    scheme: str,
    fusion: Mapping[str, tuple[float, float]] | None,
    input_range: tuple[float, float] | None,
) -> Manifest:
    """The manifest of a model that is meant for `scheme`, fuses with these weights and takes
    queries of this range.

    Raises:
        TypeError: something else than numbers.
        ValueError: as `check_manifest`.
    """
    weights = None if fusion is None else {w: _floats("fusion", f) for w, f in fusion.items()}
    bounds = None if input_range is None else _floats("input_range", input_range)
    update = {"scheme": scheme, "fusion": weights, "input_range": bounds}
    completed = manifest.model_copy(update=update)
    check_manifest(completed)
    return completed


def _floats(argument: str, values: Iterable[float]) -> tuple[float, ...]:
    try:
        return tuple(float(value) for value in values)
    except (TypeError, ValueError):
        raise TypeError(f"{argument}: expected two numbers, got {values!r}") from None


def check_manifest(manifest: Manifest) -> None:
    """Refuses a manifest that contradicts itself: anybody can write one.

    Raises:
        ValueError: the message names the entry, what was expected and what came.
    """
    for what, shape in (
        ("input_shape", manifest.input_shape),
        ("embedding_shape", manifest.embedding_shape),
    ):
        if not shape or min(shape) < 1:
            raise ValueError(f"{what}: expected one or more sizes of 1 or more, got {shape}")
    for task, outputs in manifest.tasks.items():
        if outputs < 1:
            raise ValueError(f"tasks: {task!r}: expected 1 output or more, got {outputs}")
    _check_code(manifest.code)
    _check_scheme(manifest)
    _check_fusion(manifest)
    _check_range(manifest.input_range)


def _check_code(code: CodeEntry) -> None:
    if code.k < 1 or code.r < 1:
        raise ValueError(f"code: expected k and r of 1 or more, got k = {code.k}, r = {code.r}")
    widths = sorted({len(row) for row in code.coefficients})
    if len(code.coefficients) != code.r or widths != [code.k]:
        raise ValueError(
            f"code: expected {code.r} x {code.k} coefficients (r x k), got "
            f"{len(code.coefficients)} rows of {' or '.join(map(str, widths)) or 'nothing'}"
        )


def _check_scheme(manifest: Manifest) -> None:
    parts, scheme = manifest.architecture, manifest.scheme
    if scheme not in SCHEMES:
        raise ValueError(f"scheme: expected one of {', '.join(SCHEMES)}, got {scheme!r}")
    if scheme in ENCODED and parts.encoder is None:
        raise ValueError(f"encoder: the scheme {scheme!r} needs one, got None")
    if parts.light is None and (scheme == "guided" or manifest.fusion is not None):
        raise ValueError("light: the scheme 'guided' and fusion need a light model, got None")
    if manifest.code.k < 2 and scheme in GROUPED:
        raise ValueError(
            f"code: expected k of 2 or more, as the scheme {scheme!r} groups queries, got k = "
            f"{manifest.code.k}; 'replication' copies single ones"
        )


def _check_fusion(manifest: Manifest) -> None:
    for way, weights in (manifest.fusion or {}).items():
        if way not in GROUPINGS or len(weights) != 2 or not all(map(math.isfinite, weights)):
            raise ValueError(
                f"fusion: expected two finite weights for {' or '.join(map(repr, GROUPINGS))}, "
                f"got {weights} for {way!r}"
            )


def _check_range(bounds: tuple[float, float] | None) -> None:
    if bounds is None:
        return
    if len(bounds) != 2 or not all(map(math.isfinite, bounds)) or not bounds[0] < bounds[1]:
        raise ValueError(f"input_range: expected two finite numbers, least first, got {bounds}")


def by_part(numbers: Mapping[str, int]) -> dict[str, Any]:
    """{"backbone": 1, "head.label": 2} -> {"backbone": 1, "head": {"label": 2}}, for metadata."""
    single = {part: number for part, number in numbers.items() if "." not in part}
    heads = {part: number for part, number in numbers.items() if "." in part}
    return {**single, "head": {part.partition(".")[2]: n for part, n in heads.items()}}
