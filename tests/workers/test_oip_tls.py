"""TLS to remote workers, over gRPC and over HTTP, with real certificates."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("grpc", reason="grpc is not installed: pip install 'codedinv[oip]'")
pytest.importorskip("orjson", reason="orjson is not installed: pip install 'codedinv[oip]'")
if shutil.which("openssl") is None:
    pytest.skip("openssl is not installed: apt-get install openssl", allow_module_level=True)

from codedinv.serving import CodedServer, Policy
from codedinv.workers import BackboneSpec, Died, Ready, Result
from codedinv.workers.oip import OipPool, Security
from tests.certificates import Authority
from tests.serving.helpers import check_answers
from tests.serving.linear_model import LinearModel
from tests.workers.conftest import listen
from tests.workers.oip_servers import GrpcServer, HttpServer, OipServer, ServerTls

Serve = Callable[..., str]
Meet = Callable[..., Any]


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Ours, with a pair for servers and one for clients."""
    ours = Authority(tmp_path_factory.mktemp("tls"))
    ours.sign("server")
    ours.sign("client")
    return ours


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Somebody else's, with a pair for clients."""
    other = Authority(tmp_path_factory.mktemp("stranger"), "stranger")
    other.sign("client")
    return other


@pytest.fixture(params=[GrpcServer, HttpServer], ids=["grpcs", "https"])
def serve(request: pytest.FixtureRequest, linear: LinearModel) -> Iterator[Serve]:
    """Starts a server of the linear model with TLS, over either protocol; returns its endpoint."""
    kind: type[OipServer] = request.param
    with ExitStack() as stack:

        def start(tls: ServerTls | None, host: str = "127.0.0.1") -> str:
            server: Any = kind(linear, 0, tls)  # type: ignore[call-arg]
            stack.callback(server.stop)
            scheme = "grpcs" if kind is GrpcServer else "https"
            return f"{scheme}://{host}:{server.port}/linear"

        yield start


@pytest.fixture
def meet(spec: BackboneSpec) -> Iterator[Meet]:
    """Connects to a server; returns the first that is heard of it, and the pool."""
    with ExitStack() as stack:

        def connect(endpoint: str, security: Security) -> tuple[Any, OipPool]:
            pool = OipPool(replace(spec, name="linear"), [endpoint], security=security)
            stack.callback(pool.close, 5.0)
            pool.start(0, 1)
            (message,) = listen(pool, 1)
            return message, pool

        yield connect


def pair(authority: Authority, name: str) -> tuple[Path, Path]:
    return authority.folder / f"{name}.pem", authority.folder / f"{name}.key"


def reason(message: Any) -> str:
    assert isinstance(message, Died), message
    return message.reason


@pytest.mark.parametrize("mutual", [False, True], ids=["tls", "mtls"])
def test_a_worker_behind_tls_answers(
    serve: Serve, meet: Meet, authority: Authority, linear: LinearModel, mutual: bool
) -> None:
    endpoint = serve(ServerTls(*pair(authority, "server"), authority.file if mutual else None))
    ours = pair(authority, "client") if mutual else (None, None)
    message, pool = meet(endpoint, Security(authority.file, *ours))
    assert message == Ready(0, 1)
    pool.send(0, 1, 7, "backbone", linear.queries(1)[0])
    assert isinstance(listen(pool, 1)[0], Result)


def test_a_server_of_an_unknown_authority_is_refused(
    serve: Serve, meet: Meet, authority: Authority, stranger: Authority
) -> None:
    endpoint = serve(ServerTls(*pair(authority, "server")))
    message, _ = meet(endpoint, Security(stranger.file))
    assert "certificate is signed by nobody whom we trust (security: ca)" in reason(message)


def test_an_expired_certificate_is_refused(serve: Serve, meet: Meet, authority: Authority) -> None:
    endpoint = serve(ServerTls(*authority.sign("expired", days=-1)))
    message, _ = meet(endpoint, Security(authority.file))
    assert "the server's certificate has expired" in reason(message)


def test_another_hosts_certificate_is_refused(
    serve: Serve, meet: Meet, authority: Authority
) -> None:
    endpoint = serve(ServerTls(*authority.sign("elsewhere", names="DNS:elsewhere.example")))
    message, _ = meet(endpoint, Security(authority.file))
    assert "the server's certificate is not for 127.0.0.1" in reason(message)


def test_a_server_that_wants_a_certificate_says_so(
    serve: Serve, meet: Meet, authority: Authority
) -> None:
    endpoint = serve(ServerTls(*pair(authority, "server"), authority.file))
    message, _ = meet(endpoint, Security(authority.file))
    assert "want" in reason(message)
    assert "a certificate of ours: security: certificate, key" in reason(message)


def test_a_server_that_does_not_know_our_certificate_says_so(
    serve: Serve, meet: Meet, authority: Authority, stranger: Authority
) -> None:
    endpoint = serve(ServerTls(*pair(authority, "server"), authority.file))
    message, _ = meet(endpoint, Security(authority.file, *pair(stranger, "client")))
    assert "refuse" in reason(message)
    assert "our certificate" in reason(message)


def test_a_server_without_tls_is_named(serve: Serve, meet: Meet, authority: Authority) -> None:
    message, _ = meet(serve(None), Security(authority.file))
    assert "does not speak it" in reason(message)


@pytest.mark.parametrize("field", ["ca", "certificate", "key"])
def test_files_that_are_no_certificates_are_named(
    spec: BackboneSpec, authority: Authority, tmp_path: Path, field: str
) -> None:
    certificate, key = pair(authority, "client")
    good = {"ca": authority.file, "certificate": certificate, "key": key}
    (tmp_path / "bad.pem").write_text("no certificate")
    for path in (tmp_path / "nothing.pem", tmp_path / "bad.pem"):
        with pytest.raises(ValueError, match=rf"security: .*{field}"):
            OipPool(spec, ["grpcs://127.0.0.1:1"], security=Security(**{**good, field: path}))


def test_a_server_of_workers_behind_mtls_answers(
    serve: Serve, authority: Authority, linear: LinearModel
) -> None:
    tls = ServerTls(*pair(authority, "server"), authority.file)
    security = Security(authority.file, *pair(authority, "client"))
    workers = [serve(tls) for _ in range(3)]
    policy = Policy(release="grace", grace_s=60.0)
    with CodedServer(linear, workers, security=security, policy=policy) as server:
        queries = linear.queries(8)
        check_answers(server.predict_batch(queries), linear.outputs(queries))


def test_security_is_of_remote_workers_only(linear: LinearModel) -> None:
    with pytest.raises(ValueError, match="security: expected with `workers` that are endpoints"):
        CodedServer(linear, 2, security=Security(token="secret"))


def test_a_token_is_not_shown() -> None:
    assert "secret" not in repr(Security(token="secret"))
