"""What a gateway says of itself and its models: the protocol's metadata, config and statistics."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from codedinv import __version__
from codedinv.gateway.hosted import INPUT, HostedModel
from codedinv.gateway.inference import Limits
from codedinv.serving.metrics import Snapshot
from codedinv.serving.versions import output_shapes

PLATFORM = "codedinv"
EXTENSIONS = ["model_configuration", "statistics", "model_repository", "classification"]
HTTP_EXTENSIONS = [*EXTENSIONS, "binary_tensor_data"]


def server_metadata(extensions: Iterable[str]) -> dict[str, Any]:
    """Of the gateway."""
    return {"name": "codedinv", "version": __version__, "extensions": list(extensions)}


def model_metadata(hosted: HostedModel) -> dict[str, Any]:
    """Of a model: names, datatypes and shapes of its tensors."""
    model = hosted.ready_server().model
    return {
        "name": hosted.name,
        "versions": [hosted.version],
        "platform": PLATFORM,
        "inputs": [{"name": INPUT, "datatype": "FP32", "shape": [-1, *model.input_shape]}],
        "outputs": [
            {"name": task, "datatype": "FP32", "shape": [-1, *shape]}
            for task, shape in output_shapes(model).items()
        ],
    }


def model_config(hosted: HostedModel, limits: Limits) -> dict[str, Any]:
    """Of a model, in the form of Triton's configuration; `parameters` say how it is coded."""
    server = hosted.ready_server()
    plan = server.scheme.plan
    model = server.model
    coding = {"scheme": server.scheme.name, "k": plan.k, "n": plan.n, "needed": plan.needed}
    return {
        "name": hosted.name,
        "platform": PLATFORM,
        "backend": PLATFORM,
        "version_policy": {"latest": {"num_versions": 1}},
        "max_batch_size": limits.max_batch,
        "input": [{"name": INPUT, "data_type": "TYPE_FP32", "dims": list(model.input_shape)}],
        "output": [
            {"name": task, "data_type": "TYPE_FP32", "dims": list(shape)}
            for task, shape in output_shapes(model).items()
        ],
        "parameters": {key: {"string_value": str(value)} for key, value in coding.items()},
    }


def model_statistics(hosted: HostedModel, snapshot: Snapshot | None) -> dict[str, Any]:
    """Of a model's requests since it was first loaded.

    Args:
        snapshot: of its server; None: it is not loaded.
    """
    return {
        "name": hosted.name,
        "version": hosted.version,
        **hosted.statistics.to_dict(*hosted.queue_waits(snapshot)),
    }
