"""f and g as a user has them: torch modules, or ONNX files."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from codedinv.model import CodedModel
from codedinv.model.export import to_onnx
from codedinv.training.fixed import AllHeads, FixedClassifier


class Parts(Protocol):
    """f and g, and how a model is made of them.

    Attributes:
        differentiable: gradients pass through them, so that an encoder can learn.
    """

    @property
    def differentiable(self) -> bool: ...

    def model(self, light: nn.Module | None = None, **about: Any) -> CodedModel:
        """A model of them; arguments as `CodedModel.from_modules` takes them."""
        ...

    def fixed(self, plain: CodedModel, device: torch.device) -> FixedClassifier:
        """f and all of g, as training sees them; `plain` is a model of them."""
        ...


@dataclass(frozen=True)
class TorchParts:
    """Torch modules."""

    backbone: nn.Module
    heads: Mapping[str, nn.Module]
    differentiable: bool = True

    def model(self, light: nn.Module | None = None, **about: Any) -> CodedModel:
        return CodedModel.from_modules(
            backbone=self.backbone, heads=self.heads, light=light, **about
        )

    def fixed(self, plain: CodedModel, device: torch.device) -> FixedClassifier:
        return FixedClassifier.of(self.backbone, AllHeads(self.heads), device)


@dataclass(frozen=True)
class OnnxParts:
    """ONNX files; without heads the backbone's result is the answer."""

    backbone: bytes
    heads: Mapping[str, bytes] | None
    differentiable: bool = False

    def model(self, light: nn.Module | None = None, **about: Any) -> CodedModel:
        graph = None
        if light is not None:
            anchors = torch.as_tensor(about["anchors_queries"])
            graph = to_onnx(light.cpu(), anchors, "query", "logits")[0]
        threads = torch.get_num_threads()
        return CodedModel.from_onnx(
            self.backbone, self.heads, light=graph, threads=threads, **about
        )

    def fixed(self, plain: CodedModel, device: torch.device) -> FixedClassifier:
        def answer(z: Tensor) -> Tensor:
            return torch.cat([plain.head(z, task) for task in plain.heads], dim=1)

        contents = b"".join([self.backbone, *(self.heads or {}).values()])
        digest = hashlib.sha256(contents).digest()
        return FixedClassifier(_Called(plain.embed, digest), _Called(answer, digest))


class _Called(nn.Module):
    """A function as a module without gradients; its digest stands for weights."""

    digest: Tensor

    def __init__(self, function: Callable[[Tensor], Tensor], digest: bytes) -> None:
        super().__init__()
        self._function = function
        self.register_buffer("digest", torch.tensor(list(digest), dtype=torch.uint8))

    def forward(self, x: Tensor) -> Tensor:
        return self._function(x)


def parts_of(backbone: Any, heads: Any) -> Parts:
    """f and g as they were given.

    Args:
        backbone: a torch module, or the path of an ONNX file.
        heads: a torch module or several by task; or ONNX files by task, or None.

    Raises:
        TypeError: neither; or one of each.
        ValueError: no such file.
    """
    if isinstance(backbone, (str, Path)):
        if heads is not None and not isinstance(heads, Mapping):
            raise TypeError(f"heads: expected ONNX files by task, or None, got {heads!r}")
        files = None if heads is None else {task: _read(f) for task, f in heads.items()}
        return OnnxParts(_read(backbone), files)
    return TorchParts(*as_modules(backbone, heads))


def as_modules(backbone: Any, heads: Any) -> tuple[nn.Module, dict[str, nn.Module]]:
    """Backbone and heads by task, as they were given.

    Raises:
        TypeError: they are no torch modules.
    """
    if not isinstance(backbone, nn.Module):
        raise TypeError(
            f"backbone: expected a torch module or the path of an ONNX file, got "
            f"{type(backbone).__name__}"
        )
    named = {"label": heads} if isinstance(heads, nn.Module) else dict(heads or {})
    if not named or not all(isinstance(head, nn.Module) for head in named.values()):
        raise TypeError(f'heads: expected torch modules by task, {{"label": g}}, got {heads!r}')
    return backbone, named


def _read(path: Any) -> bytes:
    if not isinstance(path, (str, Path)):
        raise TypeError(f"heads: expected paths of ONNX files, got {type(path).__name__}")
    if not Path(path).is_file():
        raise ValueError(f"backbone, heads: no file {path}")
    return Path(path).read_bytes()
