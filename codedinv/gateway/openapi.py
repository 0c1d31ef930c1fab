"""The REST interface as an OpenAPI 3.1 document, at `/openapi.json`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from codedinv import __version__

Json = dict[str, Any]

_ERRORS = {
    "400": "The request is not one, or not for this model.",
    "401": "The token is missing or wrong.",
    "404": "There is no such model, version or page.",
    "405": "The page takes another method.",
    "413": "Body or batch are too large.",
    "429": "The queue is full: try again later.",
    "500": "A failure of the gateway or of a model.",
    "503": "The model is not ready, or its workers are gone.",
    "504": "No answer came in time.",
}
_DATATYPES = (
    *("BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64"),
    *("FP16", "BF16", "FP32", "FP64", "BYTES"),
)


def describe(models: Sequence[str]) -> Json:
    """The document.

    Args:
        models: names of those that are served.
    """
    model = "/v2/models/{name}"
    paths: Json = {}
    for base in (model, model + "/versions/{version}"):
        paths[base] = _path(base, get=_operation("Names, datatypes and shapes of its tensors."))
        for last, text in (
            ("ready", "Does it answer?"),
            ("config", "Its configuration, in Triton's form."),
            ("stats", "Counts of its requests."),
        ):
            path = f"{base}/{last}"
            paths[path] = _path(path, get=_operation(text))
        infer = _operation(
            "Answers queries: one tensor `query` [B, ...]. Parameters: `timeout` (microseconds), "
            "`task`, `scheme`. With `Inference-Header-Content-Length` tensors follow the JSON raw.",
            body=_ref("InferRequest"),
            answer=_ref("InferResponse"),
        )
        paths[f"{base}/infer"] = _path(base, post=infer)
    for path, text in (
        ("/v2/health/live", "Does the gateway run?"),
        ("/v2/health/ready", "Is every model ready?"),
        ("/v2", "Name, version and extensions of the gateway."),
        ("/v2/models/stats", "Counts of all models' requests."),
        ("/status", "What the status page shows."),
    ):
        paths[path] = _path(path, get=_operation(text))
    index = {"type": "object", "properties": {"ready": {"type": "boolean"}}}
    paths["/v2/repository/index"] = {
        "post": _operation(
            "All models.", body=index, answer={"type": "array", "items": {"type": "object"}}
        )
    }
    for verb, text in (
        ("load", "Loads a model, or replaces it by its bundle as it is now."),
        ("unload", "Answers what is there, then ends a model's workers."),
    ):
        path = f"/v2/repository/models/{{name}}/{verb}"
        paths[path] = _path(path, post=_operation(text, body={"type": "object"}))
    for path in paths.values():
        for parameter in path.get("parameters", ()):
            if parameter["name"] == "name":
                parameter["schema"] = {"type": "string", "enum": list(models)}
    return {
        "openapi": "3.1.0",
        "info": {"title": "codedinv gateway", "version": __version__},
        "paths": paths,
        "components": {
            "schemas": _schemas(),
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"token": []}],
    }


def _ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


def _json(schema: Json) -> Json:
    return {"application/json": {"schema": schema}}


def _path(path: str, **operations: Json) -> Json:
    names = [name for name in ("name", "version") if "{" + name + "}" in path]
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in names
    ]
    return {**operations, "parameters": parameters}


def _operation(text: str, body: Json | None = None, answer: Json | None = None) -> Json:
    responses: Json = {
        "200": {"description": "Done.", "content": _json(answer or {"type": "object"})}
    }
    for status, meaning in _ERRORS.items():
        responses[status] = {"description": meaning, "content": _json(_ref("Error"))}
    operation: Json = {"description": text, "responses": responses}
    if body is not None:
        operation["requestBody"] = {"content": _json(body)}
    return operation


def _schemas() -> Json:
    parameters = {
        "type": "object",
        "additionalProperties": {"type": ["number", "string", "boolean"]},
    }
    text = {"type": "string"}
    tensor = {
        "type": "object",
        "required": ["name", "datatype", "shape"],
        "properties": {
            "name": text,
            "datatype": {"enum": list(_DATATYPES)},
            "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}, "maxItems": 32},
            "parameters": parameters,
            "data": {"type": "array"},
        },
    }
    requested = {
        "type": "object",
        "required": ["name"],
        "properties": {"name": text, "parameters": parameters},
    }
    tensors = {"type": "array", "minItems": 1, "items": _ref("Tensor")}
    return {
        "Error": {"type": "object", "required": ["error"], "properties": {"error": text}},
        "Tensor": tensor,
        "InferRequest": {
            "type": "object",
            "required": ["inputs"],
            "properties": {
                "id": text,
                "parameters": parameters,
                "inputs": tensors,
                "outputs": {"type": "array", "items": requested},
            },
        },
        "InferResponse": {
            "type": "object",
            "required": ["model_name", "model_version", "outputs"],
            "properties": {
                "model_name": text,
                "model_version": text,
                "id": text,
                "parameters": parameters,
                "outputs": tensors,
            },
        },
    }
