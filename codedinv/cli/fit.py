"""`codedinv fit`."""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from codedinv import data
from codedinv.fitting import fit

_EXPECTED = (
    "expected (backbone, heads), a dict of them, or one module whose outputs are the classes"
)


def run_fit(
    target: str,
    folder: Path,
    ks: str,
    budget: str,
    out: Path,
    *,
    name: str | None,
    weights: Path | None,
    unavailable: str,
    seed: int,
    as_json: bool,
    **options: Any,
) -> None:
    """Fits what `target` builds and prints the table.

    Args:
        target: "package.module:callable", or an ONNX file.
        folder: of the data.
        ks: "2,4,10".
        budget, unavailable: "10%" or "0.1".
        out: folder for all that is written.
        name: of the model; None: the folder's.
        weights: a state_dict for it (.safetensors, or what torch.save wrote).
        seed: of everything random, of the weights that `target` starts with too.
        as_json: print the report as JSON and nothing else.
        options: as `codedinv.fit` takes them.
    """
    torch.manual_seed(seed)  # a model that is trained here begins each time as it did at first
    backbone, heads = _model_of(target, weights)
    train, test = data.load_data(folder)
    model = fit(
        backbone=backbone,
        heads=heads,
        train=train,
        test=test,
        k=_numbers("--k", ks),
        budget=_share("--budget", budget),
        unavailable=_share("--unavailable", unavailable),
        name=name or out.resolve().name,
        out=out,
        seed=seed,
        quiet=as_json,
        **options,
    )
    if as_json:
        print(json.dumps(model.report.to_dict(), indent=1))
        return
    if model.default_scheme != model.scheme:
        _say(
            f"a server takes it for {model.default_scheme}, for {model.worth.objection}; "
            f"CodedServer(model, scheme={model.scheme!r}) insists"
        )
    if model.report.best.grouping == "alike":
        _say("serve it with CodedServer(model, grouping='alike')")


def _say(line: str) -> None:
    Console().print(line, highlight=False, soft_wrap=True)


def _model_of(target: str, weights: Path | None) -> tuple[Any, Any]:
    if target.endswith(".onnx"):
        if weights is not None:
            raise ValueError("--weights: an ONNX file has its weights with it")
        return target, None
    backbone, heads = build(target)
    if weights is not None:
        load_weights(backbone, heads, weights)
    return backbone, heads


def build(target: str) -> tuple[nn.Module, dict[str, nn.Module]]:
    """Backbone and heads that "package.module:callable" returns; the current folder is searched.

    Raises:
        ValueError: nothing of that name, or it returns something else.
    """
    module_name, colon, attribute = target.partition(":")
    if not colon or not module_name or not attribute:
        raise ValueError(f"MODEL: expected package.module:callable or an ONNX file, got {target!r}")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not module_name.startswith(error.name):
            raise  # what the module itself imports is missing
        raise ValueError(f"MODEL: there is no module {module_name!r} here") from error
    factory = getattr(module, attribute, None)
    if not callable(factory):
        names = [name for name in vars(module) if callable(getattr(module, name))]
        raise ValueError(
            f"MODEL: {module_name} has no callable {attribute!r}; it has {', '.join(names)}"
        )
    return _parts(factory(), target)


def _parts(built: Any, target: str) -> tuple[nn.Module, dict[str, nn.Module]]:
    if isinstance(built, nn.Module):  # its outputs are the embedding, and the answer
        return built, {"label": nn.Identity()}
    if isinstance(built, Mapping) and {"backbone", "heads"} <= set(built):
        built = (built["backbone"], built["heads"])
    if not isinstance(built, tuple) or len(built) != 2 or not isinstance(built[0], nn.Module):
        raise ValueError(f"MODEL: {target}() returned {type(built).__name__}; {_EXPECTED}")
    backbone, heads = built
    if isinstance(heads, nn.Module):
        return backbone, {"label": heads}
    return backbone, dict(heads)


def load_weights(backbone: nn.Module, heads: Mapping[str, nn.Module], path: Path) -> None:
    """Fills a model with a state_dict: keys `backbone.*` and `heads.TASK.*`, or the backbone's own.

    Raises:
        ValueError: no such file, not a state_dict, or of another network.
    """
    if not path.is_file():
        raise ValueError(f"--weights: no file {path}")
    state = _state_of(path)
    whole = nn.ModuleDict({"backbone": backbone, "heads": nn.ModuleDict(dict(heads))})
    prefixed = any(key.startswith(("backbone.", "heads.")) for key in state)
    module: nn.Module = whole if prefixed else backbone
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"--weights: {path} does not fit the model: {reason}") from error


def _state_of(path: Path) -> dict[str, Any]:
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(path))
        state = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # each format fails in ways of its own
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"--weights: {path} holds no state_dict ({reason})") from error
    if not isinstance(state, Mapping) or not all(hasattr(v, "shape") for v in state.values()):
        raise ValueError(f"--weights: expected a state_dict in {path}, got {type(state).__name__}")
    return dict(state)


def _numbers(option: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"{option}: expected numbers like 2,4,10, got {text!r}") from None


def _share(option: str, text: str) -> float:
    try:
        return float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        raise ValueError(f"{option}: expected a share like 10% or 0.1, got {text!r}") from None
