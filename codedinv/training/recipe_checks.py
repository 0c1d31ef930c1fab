"""What is wrong with a recipe, in the recipe's own words: the key, what it takes, what came."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
from collections.abc import Iterable, Mapping
from typing import Any, get_args, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from codedinv.nn.build import BACKBONES, HEADS

_STRICT = ConfigDict(extra="forbid")
_SHOWN = 60  # characters of a value in a message


def check_backbone(config: Mapping[str, Any]) -> None:
    """Refuses a [backbone] that its network's config does not take.

    Raises:
        ValueError: names the key, what was expected and what came.
    """
    fields = dict(config)
    kind = fields.pop("kind", "iresnet")
    if kind not in BACKBONES:
        raise ValueError(f"backbone.kind: expected one of {', '.join(BACKBONES)}, got {kind!r}")
    _validate(_strict(BACKBONES[kind]), fields, "backbone")
    try:
        BACKBONES[kind].from_dict(fields)
    except ValueError as error:
        raise ValueError(f"backbone: {error}") from None


def check_head(config: Mapping[str, Any]) -> None:
    """The same of a [head]; its shapes come from the backbone and the data.

    Raises:
        ValueError: names the key, what was expected and what came.
    """
    fields = dict(config)
    kind = fields.pop("kind", None)
    if kind not in HEADS:
        raise ValueError(f"head.kind: expected one of {', '.join(HEADS)}, got {kind!r}")
    parameters = inspect.signature(HEADS[kind]).parameters
    hints = get_type_hints(HEADS[kind].__init__)
    allowed: Any = {
        name: (hints[name], parameter.default)
        for name, parameter in parameters.items()
        if name not in ("embedding_shape", "outputs")
    }
    _validate(create_model("head", __config__=_STRICT, **allowed), fields, "head")


def _validate(model: type[BaseModel], fields: Mapping[str, Any], section: str) -> None:
    try:
        model.model_validate(fields)
    except ValidationError as error:
        raise ValueError(explained(error, model, section)) from None


def _strict(config: Any) -> type[BaseModel]:
    """A model of a dataclass, and of those in its tuples, that takes no other key."""
    hints = get_type_hints(config)
    taken: Any = {}
    for field in dataclasses.fields(config):
        hint = hints[field.name]
        inner = next((a for a in get_args(hint) if dataclasses.is_dataclass(a)), None)
        hint = hint if inner is None else tuple[_strict(inner), ...]  # type: ignore[misc]
        default = ... if field.default is dataclasses.MISSING else field.default
        taken[field.name] = (hint, default)
    return create_model(config.__name__, __config__=_STRICT, **taken)


def explained(error: ValidationError, model: Any, prefix: str = "") -> str:
    """The problems of a recipe, one after the other, without what is pydantic's own."""
    return "; ".join(
        _problem(detail, _fields(model, detail["loc"]), prefix) for detail in error.errors()
    )


def _problem(detail: Any, known: Iterable[str], prefix: str) -> str:
    key = ".".join(str(part) for part in (prefix, *detail["loc"]) if part != "")
    if detail["type"] == "missing":
        return f"{key}: it is missing"
    if detail["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        name, known = str(detail["loc"][-1]), sorted(known)
        near = difflib.get_close_matches(name, known, 1)
        meant = f"; did you mean {near[0]}?" if near else f"; expected of {', '.join(known)}"
        return f"{key}: there is no such key{meant}"
    expected = detail["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    shown = repr(detail["input"])
    shown = shown if len(shown) <= _SHOWN else f"{shown[: _SHOWN - 3]}..."
    said = expected if detail["msg"].startswith("Value error") else f"expected {expected}"
    if not key:
        return said
    said = said.removeprefix(f"{key}: ")  # a check of our own, which may be complete in itself
    return f"{key}: {said}" if said.endswith(f"got {shown}") else f"{key}: {said}, got {shown}"


def _fields(model: Any, place: tuple[int | str, ...]) -> list[str]:
    """Names of the keys beside the last one of a place, as far as models and dataclasses tell."""
    for part in place[:-1]:
        hint = _hints(model).get(str(part))
        if hint is None:
            return [] if isinstance(part, str) else _fields_of(model)
        model = next((m for m in _models_in(hint)), hint)
    return _fields_of(model)


def _fields_of(model: Any) -> list[str]:
    return list(_hints(model))


def _hints(model: Any) -> dict[str, Any]:
    if isinstance(model, type) and issubclass(model, BaseModel):
        return {name: field.annotation for name, field in model.model_fields.items()}
    return {}


def _models_in(hint: Any) -> list[type[BaseModel]]:
    """The model in a hint such as `LightRecipe | None` or `tuple[Stage, ...]`."""
    found = (hint, *get_args(hint))
    return [one for one in found if isinstance(one, type) and issubclass(one, BaseModel)]
