"""What a gateway is told: by arguments, environment and file, in this order of weight."""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from codedinv.serving import Policy
from codedinv.workers.batches import MOST_IN_A_BATCH

if TYPE_CHECKING:
    from codedinv.workers.oip import Security

PREFIX = "CODEDINV_"
_NOT_OURS = {"CODEDINV_ISA"}  # the decoder's


def _policy(value: Any) -> Any:
    if isinstance(value, Policy):
        return value
    if not isinstance(value, Mapping):
        raise ValueError(f"expected a mapping of Policy's fields, got {value!r}")
    known = {f.name for f in fields(Policy)}
    wrong = sorted(set(value) - known)
    if wrong:
        raise ValueError(f"unknown: {', '.join(map(str, wrong))}; known are {sorted(known)}")
    return Policy(**value)


class SecuritySettings(BaseModel):
    """How to connect to remote workers.

    Attributes:
        ca: PEM file of the certificates to trust; None: the system's.
        certificate, key: PEM files of the gateway's own, for workers that want one; both or none.
        token: sent as `Authorization: Bearer TOKEN`, over TLS only unless the worker is local.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    token: SecretStr | None = None


class ModelSettings(BaseModel):
    """One model that is served.

    Attributes:
        model: a bundled name or a bundle's folder.
        name: by which clients ask for it; None: the bundle's own.
        workers: how many, or the addresses of remote ones; None: as many as a group has slots.
        security: how to connect to remote ones, with TLS and a token.
        backend: as `CodedServer` takes it.
        scheme: as `CodedServer` takes it.
        grouping: as `CodedServer` takes it.
        fuse: as `CodedServer` takes it.
        fallback: "light": answers what nothing else answered in time.
        max_batch, max_queue_delay_us, devices, runtime: as `CodedServer` takes them.
        policy: fields of `Policy`.
    """

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True, frozen=True)

    model: str
    name: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    workers: Annotated[int, Field(ge=1)] | tuple[str, ...] | None = None
    security: SecuritySettings | None = None
    backend: Literal["process", "thread", "ray"] | None = None
    scheme: Literal["invertible", "worker-encoded", "guided", "replication", "uncoded"] | None = (
        None
    )
    grouping: Literal["arrival", "alike"] = "arrival"
    fuse: bool = True
    fallback: Literal["light"] | None = None
    max_batch: int = Field(default=1, ge=1, le=MOST_IN_A_BATCH)
    max_queue_delay_us: int = Field(default=0, ge=0)
    devices: str | tuple[str, ...] = "cpu"
    runtime: Literal["auto", "onnx", "torch"] = "auto"
    policy: Annotated[Policy, BeforeValidator(_policy)] = Policy()

    @model_validator(mode="after")
    def _check(self) -> ModelSettings:
        if self.security is not None and not isinstance(self.workers, tuple):
            raise ValueError("security: expected with workers that are addresses")
        if self.security_of_workers is not None:
            from codedinv.workers.oip.tls import tls_context

            tls_context(self.security_of_workers)
        return self

    @property
    def security_of_workers(self) -> Security | None:
        """The same for `CodedServer`."""
        if self.security is None:
            return None
        from codedinv.workers.oip import Security

        token = self.security.token
        return Security(
            self.security.ca,
            self.security.certificate,
            self.security.key,
            token.get_secret_value() if token is not None else None,
        )


class GatewaySettings(BaseSettings):
    """A gateway. Every field is also an environment variable, `CODEDINV_` and its name in capitals.

    Attributes:
        models: what is served.
        host: address to listen on. Another than the loopback should have a token and TLS.
        http_port: for REST, metrics and the status page; 0: a free one.
        grpc_port: for gRPC; 0: a free one; None: no gRPC.
        token: of `Authorization: Bearer TOKEN`, which everything but health and the empty status
            page then asks for.
        tls_certificate, tls_key: PEM files; both, or none for plain text.
        tls_client_ca: PEM file; only clients with a certificate of it are let in.
        max_body_bytes: of one request, over HTTP also after decompression.
        max_total_body_bytes: of all requests at a time, over HTTP and gRPC together.
        max_batch: queries in one request.
        max_requests: at a time, over HTTP and over gRPC each.
        receive_timeout_s: from a request's first byte to its last over HTTP; the connection of one
            that takes longer is closed.
        drain_delay_s: how long it still takes requests after SIGTERM, when it says already that it
            is not ready: the time that load balancers need to notice.
        drain_timeout_s: for requests in progress after that.
        access_log: a line for each request, not only for those that failed.
        tracing: sends OpenTelemetry spans by OTLP, as the variables OTEL_* say.
        log_level: of the log on stderr, JSON lines.
    """

    model_config = SettingsConfigDict(extra="forbid", env_prefix=PREFIX, frozen=True)

    models: tuple[ModelSettings, ...] = Field(min_length=1)
    host: str = "127.0.0.1"
    http_port: int = Field(default=8000, ge=0, le=65535)
    grpc_port: int | None = Field(default=8001, ge=0, le=65535)
    token: SecretStr | None = Field(default=None, min_length=8)
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    tls_client_ca: Path | None = None
    max_body_bytes: int = Field(default=64 * 2**20, ge=1024, lt=2**31)
    max_total_body_bytes: int = Field(default=512 * 2**20, ge=1024)
    max_batch: int = Field(default=256, ge=1)
    max_requests: int = Field(default=1024, ge=1)
    receive_timeout_s: float = Field(default=60.0, gt=0, allow_inf_nan=False)
    drain_delay_s: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    drain_timeout_s: float = Field(default=30.0, gt=0, allow_inf_nan=False)
    access_log: bool = False
    tracing: bool = False
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @model_validator(mode="after")
    def _check(self) -> GatewaySettings:
        if self.max_total_body_bytes < self.max_body_bytes:
            raise ValueError(
                f"max_total_body_bytes: expected at least max_body_bytes, {self.max_body_bytes}, "
                f"got {self.max_total_body_bytes}"
            )
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key: expected both or none")
        if self.tls_client_ca is not None and self.tls_certificate is None:
            raise ValueError("tls_client_ca: expected with tls_certificate and tls_key")
        for name in ("tls_certificate", "tls_key", "tls_client_ca"):
            path = getattr(self, name)
            if path is not None and not path.is_file():
                raise ValueError(f"{name}: no such file: {path}")
        if self.tls_certificate is not None:
            _check_tls(self.tls_certificate, self.tls_key, self.tls_client_ca)
        return self

    @property
    def tls_pair(self) -> tuple[Path, Path] | None:
        """Files of certificate and key; None: plain text."""
        if self.tls_certificate is None or self.tls_key is None:  # both are, see above
            return None
        return self.tls_certificate, self.tls_key

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The file is merged by `load_settings`, below the environment."""
        return (init_settings, env_settings)


def _check_tls(certificate: Path, key: Path | None, client_ca: Path | None) -> None:
    """Loads the files as the listeners will, which would say less of what is wrong with them."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(certificate, key, password=_no_password)
    except OSError as error:
        raise ValueError(f"tls_certificate and tls_key: expected a PEM pair: {error}") from None
    try:
        if client_ca is not None:
            context.load_verify_locations(client_ca)
    except OSError as error:
        raise ValueError(f"tls_client_ca: expected PEM certificates: {error}") from None


def _no_password() -> str:
    raise ValueError("tls_key: expected a key without a password")


def load_settings(
    arguments: Mapping[str, Any],
    file: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> GatewaySettings:
    """The settings, checked.

    Args:
        arguments: what the command line said; wins.
        file: YAML; what neither argument nor environment say.
        environment: None: the process's.

    Raises:
        ValueError: a line for each wrong key, naming it and what was expected.
    """
    environment = os.environ if environment is None else environment
    said = {name for name in environment if name.startswith(PREFIX)} - _NOT_OURS
    known = {PREFIX + name.upper() for name in GatewaySettings.model_fields}
    if said - known:
        raise ValueError(
            f"environment: unknown {', '.join(sorted(said - known))}; known are "
            f"{', '.join(sorted(known))}"
        )
    values = _read(file) if file is not None else {}
    values = {k: v for k, v in values.items() if PREFIX + str(k).upper() not in said}
    try:
        return GatewaySettings(**values | dict(arguments))
    except ValidationError as error:
        raise ValueError("; ".join(map(_line, error.errors()))) from None


def _read(file: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(file.read_text())
    except OSError as error:
        raise ValueError(f"{file}: {error}") from None
    except yaml.MarkedYAMLError as error:  # its own text quotes the line, where the token may be
        line = error.problem_mark.line + 1 if error.problem_mark is not None else "?"
        raise ValueError(f"{file}: line {line}: {error.problem}") from None
    except (yaml.YAMLError, UnicodeDecodeError):
        raise ValueError(f"{file}: expected YAML in UTF-8") from None
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ValueError(f"{file}: expected a mapping of settings")
    return values


def _line(problem: Any) -> str:
    place = ".".join(str(part) for part in problem["loc"]) or "settings"
    what = problem["msg"]
    if problem["type"] == "missing":
        return f"{place}: expected, and not there"
    if problem["type"] == "extra_forbidden":
        return f"{place}: no such setting"
    got = "" if "token" in place or isinstance(problem["input"], dict) else repr(problem["input"])
    return f"{place}: {what[0].lower()}{what[1:]}" + (f", got {got}" if got else "")
