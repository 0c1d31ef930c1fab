"""Where a server is, and what it must be shown to let us in."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

_SCHEMES = ("grpc", "grpcs", "http", "https")


@dataclass(frozen=True)
class Endpoint:
    """The address of one worker. Made by `Endpoint.parse`.

    Attributes:
        scheme: "grpc" or "http"; "grpcs" and "https" with TLS.
        host: a name or an IP address, without brackets.
        port: of it.
        model: what the server calls the backbone; empty: as the bundle is called.
        version: of that model; empty: whichever the server prefers.
    """

    scheme: str
    host: str
    port: int
    model: str = ""
    version: str = ""

    @classmethod
    def parse(cls, url: str) -> Endpoint:
        """Reads "grpc://HOST:PORT", "http://HOST:PORT/MODEL" or "http://HOST:PORT/MODEL/VERSION".

        Raises:
            ValueError: something else.
        """
        expected = f"endpoint: expected SCHEME://HOST:PORT[/MODEL[/VERSION]], got {url!r}"
        if not isinstance(url, str):
            raise ValueError(expected)
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise ValueError(f"{expected}: {error}") from None
        if parts.scheme not in _SCHEMES:
            raise ValueError(f"{expected}; schemes are {', '.join(_SCHEMES)}")
        path = [name for name in parts.path.split("/") if name]
        is_more = parts.query or parts.fragment or parts.username is not None or len(path) > 2
        if not parts.hostname or not port or is_more:
            raise ValueError(expected)
        model, version = (*path, "", "")[:2]
        return cls(parts.scheme, parts.hostname, port, model, version)

    @property
    def is_grpc(self) -> bool:
        """Does it speak gRPC rather than HTTP?"""
        return self.scheme.startswith("grpc")

    @property
    def has_tls(self) -> bool:
        """Is the connection encrypted?"""
        return self.scheme in ("grpcs", "https")

    @property
    def address(self) -> str:
        """HOST:PORT."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.address}"


@dataclass(frozen=True)
class Security:
    """How to connect to servers that ask for more than an address.

    Attributes:
        ca: file of the certificates to trust (PEM); None: the system's, over gRPC those that it
            brings.
        certificate, key: files of the front end's own certificate, for servers that want one.
        token: sent as `Authorization: Bearer TOKEN`, over TLS only unless the server is on this
            machine.
    """

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    token: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        for name in ("ca", "certificate", "key"):
            value = getattr(self, name)
            object.__setattr__(self, name, None if value is None else Path(value))
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key: expected both or neither")

    def headers(self, endpoint: Endpoint) -> dict[str, str]:
        """What a request carries.

        Raises:
            ValueError: a token would travel unencrypted.
        """
        if self.token is None:
            return {}
        if not endpoint.has_tls and endpoint.host not in ("127.0.0.1", "::1", "localhost"):
            raise ValueError(f"token: would travel unencrypted to {endpoint}; use TLS")
        return {"authorization": f"Bearer {self.token}"}
