"""How others reach a server: Open Inference Protocol v2 over REST and gRPC, metrics, status page.

It needs the extra `gateway`; what is named here is loaded on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from codedinv.lazy import lazily

if TYPE_CHECKING:
    from codedinv.gateway.rest import create_app
    from codedinv.gateway.run import run_gateway
    from codedinv.gateway.settings import GatewaySettings, ModelSettings, load_settings

_HOME = {
    "create_app": "codedinv.gateway.rest",
    "run_gateway": "codedinv.gateway.run",
    "GatewaySettings": "codedinv.gateway.settings",
    "ModelSettings": "codedinv.gateway.settings",
    "load_settings": "codedinv.gateway.settings",
}
# Modules that only the extra brings.
_EXTRA = frozenset(
    (
        *("google", "grpc", "grpc_health", "grpc_reflection", "httptools", "orjson"),
        *("prometheus_client", "pydantic_settings", "starlette", "uvicorn", "uvloop", "yaml"),
    )
)

__all__ = ["GatewaySettings", "ModelSettings", "create_app", "load_settings", "run_gateway"]


_load, __dir__ = lazily(__name__, _HOME)


def __getattr__(name: str) -> Any:
    try:
        return _load(name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _EXTRA:
            raise
        raise ImportError(
            f"the gateway needs {error.name}, which is not installed: pip install codedinv[gateway]"
        ) from error
