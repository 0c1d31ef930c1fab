"""How a bundle says what its networks are, and torch modules made of that.

A factory named in a bundle is code that the bundle chooses: importing and calling it is never done
but for one who says that he trusts the bundle.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

import torch
from torch import nn

from codedinv.model.manifest import FACTORY, IDENTITY, ONNX, Manifest
from codedinv.nn import build_backbone, build_encoder, build_head, build_light

_FACTORY_NAME = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
_TOLERANCE = 1e-4  # of the largest output: two networks of equal weights may still round otherwise
_BUILDERS: dict[str, Callable[[dict[str, Any]], nn.Module]] = {
    "backbone": build_backbone,
    "encoder": build_encoder,
    "light": build_light,
    "head": build_head,
}

# What callers may write: a factory's name, or the entry of a bundle; None: the ONNX graph alone.
Given = str | Mapping[str, Any] | None


def entry_of(part: str, module: nn.Module, given: Mapping[str, Given]) -> dict[str, Any]:
    """The entry of one network for `Architecture`.

    Args:
        part: "backbone", "encoder", "light" or "head.TASK".
        module: the network.
        given: what the caller says of networks, by part. For one it does not name: the module's
            own `config_dict()` where it is a network of `codedinv.nn`, else the ONNX graph alone.

    Raises:
        ValueError: a factory's name or arguments that a bundle could not carry.
    """
    if part in given:
        return _checked(part, given[part])
    if type(module) is nn.Identity and part.startswith("head."):
        return {"kind": IDENTITY}
    config_dict = getattr(module, "config_dict", None)
    if callable(config_dict) and type(module).__module__.startswith("codedinv.nn."):
        return dict(config_dict())
    return {"kind": ONNX}


def check_rebuilds(part: str, entry: Mapping[str, Any], module: nn.Module, x: torch.Tensor) -> None:
    """Refuses an entry that does not give the network back, before it is written anywhere.

    Args:
        part: as in `entry_of`.
        entry: of `Architecture`.
        module: the network, on the CPU in eval mode.
        x: an input of it.

    Raises:
        ValueError: it cannot be built, takes other weights, or gives other outputs.
    """
    if entry["kind"] in (ONNX, IDENTITY):
        return
    try:
        again = rebuild(part, entry, trust_factory=True)
        again.load_state_dict(module.state_dict())
        expected, got = module(x), again.eval()(x)
        same = got.shape == expected.shape and bool(
            (got - expected).abs().max() <= _TOLERANCE * expected.abs().max()
        )
    except Exception as error:  # a factory is the caller's, and may raise anything
        raise ValueError(
            f"architecture: {part!r}: {_named(entry)} does not rebuild the {type(module).__name__} "
            f"that was given: {error}"
        ) from error
    if not same:
        raise ValueError(
            f"architecture: {part!r}: {_named(entry)} gives other outputs with the same weights "
            f"than the {type(module).__name__} that was given"
        )


def rebuild(part: str, entry: Mapping[str, Any], trust_factory: bool) -> nn.Module:
    """A network without its weights.

    Args:
        part: as in `entry_of`.
        entry: of `Architecture`.
        trust_factory: import and call the factory that the entry names.

    Raises:
        ValueError: an unknown kind, one without torch modules, or a factory that is not trusted.
        Whatever the factory, or its import, raises.
    """
    kind = entry.get("kind")
    if kind == ONNX:
        raise ValueError(
            f"{part}: the bundle has its ONNX graph and no torch module; use runtime='onnx', or "
            "save the model anew with from_modules(..., architecture={...}), see docs/own-models.md"
        )
    if kind == IDENTITY:
        return nn.Identity()
    if kind != FACTORY:
        return _BUILDERS[part.partition(".")[0]](dict(entry))
    name = str(entry["factory"])
    if not trust_factory:
        raise ValueError(
            f"{part}: to rebuild it the bundle's own choice of code, {name}, must be imported and "
            "called. If you trust whoever made the bundle: load(..., trust_factory=True)"
        )
    home, _, attribute = name.partition(":")
    factory: Any = import_module(home)
    for step in attribute.split("."):
        factory = getattr(factory, step)
    module = factory(**entry["arguments"])
    if not isinstance(module, nn.Module):
        raise TypeError(f"{name} returned a {type(module).__name__}, no torch.nn.Module")
    return module


def check_given(given: Mapping[str, Given], manifest: Manifest) -> None:
    """Refuses entries for networks that there are not.

    Raises:
        ValueError: the message names those that there are.
    """
    unknown = set(given) - set(manifest.architecture.parts())
    if unknown:
        known = sorted(manifest.architecture.parts())
        raise ValueError(f"architecture: expected some of {known}, got {sorted(unknown)}")


def _checked(part: str, given: Given) -> dict[str, Any]:
    if given is None:
        return {"kind": ONNX}
    entry = {"factory": given} if isinstance(given, str) else dict(given)
    if "factory" not in entry:
        return entry  # a kind of codedinv.nn; rebuilding it tells whether it is one
    entry = {"kind": FACTORY, "arguments": {}, **entry}
    name, arguments = entry["factory"], entry["arguments"]
    if not isinstance(name, str) or not _FACTORY_NAME.fullmatch(name):
        raise ValueError(
            f"architecture: {part!r}: expected 'package.module:callable', got {name!r}"
        )
    if name.startswith("__main__:"):
        raise ValueError(
            f"architecture: {part!r}: {name!r} is found in no other process; move it to a module"
        )
    if set(entry) != {"kind", "factory", "arguments"} or not isinstance(arguments, Mapping):
        raise ValueError(
            f"architecture: {part!r}: expected {{'factory': name, 'arguments': {{...}}}}, "
            f"got {entry!r}"
        )
    try:
        plain = json.loads(json.dumps(arguments, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"architecture: {part!r}: expected arguments of plain JSON values: {error}"
        ) from error
    return {"kind": FACTORY, "factory": name, "arguments": plain}


def _named(entry: Mapping[str, Any]) -> str:
    return str(entry["factory"]) if entry.get("kind") == FACTORY else f"kind {entry.get('kind')!r}"
