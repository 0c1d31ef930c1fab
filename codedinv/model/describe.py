"""What a bundle says of its networks: shapes, tasks, MACs and parameters, found by running each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from codedinv.coding import Code
from codedinv.model.anchors import Anchors, least_anchors
from codedinv.model.architecture import Given, check_given, check_rebuilds, entry_of
from codedinv.model.manifest import Manifest, by_part, manifest_of
from codedinv.model.modules import TorchModules
from codedinv.model.names import check_name, check_task
from codedinv.nn.macs import macs

_SAME = 1e-3  # of the largest value: kernels for one query and for several round differently


@torch.no_grad()
def describe(
    name: str,
    code: Code,
    modules: TorchModules,
    anchors_queries: Any,
    metadata: Mapping[str, Any],
    architecture: Mapping[str, Given],
) -> tuple[Manifest, Anchors]:
    """Finds shapes, MACs and parameters by running each part once.

    Args:
        name: of the model.
        code: its code.
        modules: its networks.
        anchors_queries: (A, *input), floats.
        metadata: what else is to be said of it.
        architecture: what the caller says of networks, by part.

    Raises:
        ValueError: a bad name, too few anchors, parts whose shapes do not fit together, results
            that are not finite, or an architecture that does not give a network back.
    """
    _check_names(name, modules)
    queries = _queries(anchors_queries, least_anchors(code.k, modules.encoder is not None))
    embeddings = _embeddings(modules.backbone, queries)
    tasks = {
        task: _width(f"heads: {task!r}", head, embeddings) for task, head in modules.heads.items()
    }
    group = queries[torch.arange(code.k) % len(queries)][None]
    if modules.encoder is not None:
        _check_encoder(modules.encoder, group, code)
    if modules.light is not None:
        _check_light(modules.light, queries, sum(tasks.values()))
    examples = {"backbone": queries[:1], "encoder": group, "light": queries[:1]}
    parts = modules.parts()
    inputs = {part: examples.get(part, embeddings[:1]) for part in parts}
    entries = {part: entry_of(part, module, architecture) for part, module in parts.items()}
    found = {
        "macs": by_part({part: macs(parts[part], inputs[part]) for part in parts}),
        "parameters": by_part({part: _parameters(module) for part, module in parts.items()}),
        "certificates": modules.certificates,
    }
    shapes = queries.shape[1:], embeddings.shape[1:]
    manifest = manifest_of(name, code, *shapes, tasks, entries, {**metadata, **found})
    check_given(architecture, manifest)
    for part, module in parts.items():
        check_rebuilds(part, entries[part], module, inputs[part])
    return manifest, Anchors(queries.numpy(), embeddings.numpy())


def _check_names(name: str, modules: TorchModules) -> None:
    check_name(name)
    for task in modules.heads:
        check_task(task)
    if not modules.heads:
        raise ValueError("heads: expected at least one task")


def _queries(anchors_queries: Any, least: int) -> torch.Tensor:
    given = torch.as_tensor(anchors_queries)
    if not given.is_floating_point():
        raise ValueError(
            f"anchors_queries: expected floats, as queries are, got {given.dtype}: scale pixels to "
            "[0, 1]; give tokens as their embedding layer's output"
        )
    queries = given.detach().to("cpu", torch.float32, copy=True).contiguous()
    if queries.ndim < 2 or len(queries) < least or not queries.numel():
        raise ValueError(
            f"anchors_queries: expected (A, *input) with A >= {least}, got {tuple(queries.shape)}"
        )
    if not queries.isfinite().all():
        raise ValueError("anchors_queries: expected finite values, got NaN or infinity")
    return queries


def _embeddings(backbone: nn.Module, queries: torch.Tensor) -> torch.Tensor:
    what = f"backbone: (B, *input) -> (B, *embedding), called with {tuple(queries.shape)}"
    # One query is not enough to see whether the backbone mixes those of a batch.
    several = queries if len(queries) > 1 else torch.cat([queries, queries.flip(-1)])
    embeddings = _run(what, backbone, several)
    if embeddings.ndim < 2 or len(embeddings) != len(several) or not embeddings.numel():
        raise ValueError(f"{what}: got {tuple(embeddings.shape)} for a batch of {len(several)}")
    alone = _run(what, backbone, queries[:1])
    if not (alone - embeddings[:1]).abs().max() <= _SAME * embeddings.abs().max():
        raise ValueError(
            "backbone: it answers a query differently beside others than alone, but each query of "
            "a group goes to a worker of its own"
        )
    return embeddings[: len(queries)]


def _width(what: str, head: nn.Module, embeddings: torch.Tensor) -> int:
    """Outputs of a task."""
    output = _run(what, head, embeddings)
    if output.ndim != 2 or len(output) != len(embeddings) or not output.numel():
        raise ValueError(
            f"{what} must give (B, outputs), got {tuple(output.shape)} for "
            f"{len(embeddings)} embeddings; flatten(1) what has more axes, unsqueeze(1) one alone"
        )
    return output.shape[1]


def _check_encoder(encoder: nn.Module, group: torch.Tensor, code: Code) -> None:
    expected = (1, code.r, *group.shape[2:])
    what = f"encoder: (B, {code.k}, *input) -> (B, {code.r}, *input), called with k = {code.k}"
    parity = _run(what, encoder, group)
    if tuple(parity.shape) != expected:
        raise ValueError(f"{what}: expected {expected}, got {tuple(parity.shape)}")


def _check_light(light: nn.Module, queries: torch.Tensor, outputs: int) -> None:
    got = tuple(_run("light", light, queries).shape)
    if got != (len(queries), outputs):
        raise ValueError(
            f"light: expected (B, {outputs}), the outputs of all tasks, got {got} for "
            f"{len(queries)} queries"
        )


def _run(what: str, module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """What a network makes of anchors, or what is wrong with that."""
    try:
        output: Any = module(x)
    except Exception as error:  # a user's network may raise anything
        raise ValueError(
            f"{what}: {type(module).__name__} does not take float32 {tuple(x.shape)}: {error}"
        ) from error
    if not isinstance(output, torch.Tensor):
        raise ValueError(f"{what}: expected one tensor, got a {type(output).__name__}")
    if output.dtype != torch.float32:
        raise ValueError(f"{what}: expected float32, got {output.dtype}")
    if not output.isfinite().all():
        raise ValueError(f"{what}: NaN or infinity for the anchors' queries")
    return output


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
