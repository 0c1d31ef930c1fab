"""`codedinv serve`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from codedinv.errors import CodedInvError


def run_serve(
    models: list[str], workers: int | None, options: dict[str, Any], config: Path | None
) -> None:
    """Runs a gateway until it is told to end.

    Args:
        models: bundled names or folders; none: those of the file or the environment.
        workers: of each of them; None: as many as a coding group has slots.
        options: other fields of `GatewaySettings`; None: not said.
        config: a YAML file of `GatewaySettings`.
    """
    try:
        from codedinv.gateway import load_settings, run_gateway
    except ImportError as error:
        raise CodedInvError(str(error)) from error
    if workers is not None and not models:
        raise ValueError("--workers: expected with --model; in a file, `workers` is each model's")
    said = {name: value for name, value in options.items() if value is not None}
    if models:
        said["models"] = [{"model": model, "workers": workers} for model in models]
    run_gateway(load_settings(said, config))
