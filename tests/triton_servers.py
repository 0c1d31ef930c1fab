"""Real Tritons: the tritonserver that the wheel nvidia-pytriton carries, with its Python backend.

It lives in a virtual environment of its own (numpy < 2), which `make test-servers` makes.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = Path(os.environ.get("TRITON_VENV", ROOT / ".venv-triton"))
START_S = 60.0


@dataclass
class Triton:
    """A running server.

    Attributes:
        process: it, first of a session of its own.
        http_port, grpc_port: on 127.0.0.1.
        log: what it says.
    """

    process: subprocess.Popen[bytes]
    http_port: int
    grpc_port: int
    log: Path

    @property
    def grpc(self) -> str:
        """Its endpoint."""
        return f"grpc://127.0.0.1:{self.grpc_port}"

    @property
    def http(self) -> str:
        """Its other endpoint."""
        return f"http://127.0.0.1:{self.http_port}"

    def kill(self) -> None:
        """SIGKILL for it and its backend's processes, which would outlive it."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.http}/v2/health/ready", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False


def missing() -> str:
    """Why there is no Triton here; empty: there is one."""
    if sys.platform != "linux":
        return "Triton: its wheel is for Linux"
    if not _server().exists():
        return f"Triton is not installed in {ENVIRONMENT}: `make test-servers` does that"
    return ""


def start(
    repository: Path, folder: Path, ports: tuple[int, int] = (0, 0), arguments: Sequence[str] = ()
) -> Triton:
    """Starts a server and returns at once.

    Args:
        repository: of models.
        folder: for its log.
        ports: of HTTP and gRPC; 0: free ones.
        arguments: more of tritonserver's.
    """
    stub = _backends() / "python" / "triton_python_backend_stub"
    if not stub.exists():
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        shutil.copy(_home() / "python_backend_stubs" / version / stub.name, stub)
    stub.chmod(0o755)
    http_port, grpc_port = (port or _free_port() for port in ports)
    log = folder / f"triton-{http_port}.log"
    libraries = (_packages() / "nvidia_pytriton.libs", sysconfig.get_config_var("LIBDIR"))
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": os.pathsep.join(map(str, libraries)),
        # Its Python finds its packages by the first python3 here.
        "PATH": f"{ENVIRONMENT / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": "",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
    command = [
        str(_server()), "--model-repository", str(repository),
        "--backend-directory", str(_backends()),
        "--http-address", "127.0.0.1", "--http-port", str(http_port),
        "--grpc-address", "127.0.0.1", "--grpc-port", str(grpc_port),
        "--allow-metrics", "false", "--exit-timeout-secs", "2", *arguments,
    ]  # fmt: skip
    with log.open("ab") as file:
        process = subprocess.Popen(
            command, env=environment, stdout=file, stderr=file, start_new_session=True
        )
    return Triton(process, http_port, grpc_port, log)


def wait_until_ready(tritons: Sequence[Triton]) -> None:
    """Waits for all of them.

    Raises:
        RuntimeError: one has ended or takes too long; with its log.
    """
    until = time.monotonic() + START_S
    for triton in tritons:
        while not triton.is_ready():
            if triton.process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"Triton is not ready: {triton.log.read_text()[-3000:]}")
            time.sleep(0.1)


@contextlib.contextmanager
def running(count: int, repository: Path, folder: Path) -> Iterator[list[Triton]]:
    """So many servers of a repository, ready; killed in the end.

    Whoever restarts one puts it in its place in the list.
    """
    tritons: list[Triton] = []
    try:
        tritons += [start(repository, folder) for _ in range(count)]
        wait_until_ready(tritons)
        yield tritons
    finally:
        for triton in tritons:
            triton.kill()


def _packages() -> Path:
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    return ENVIRONMENT / "lib" / version / "site-packages"


def _home() -> Path:
    return _packages() / "pytriton" / "tritonserver"


def _backends() -> Path:
    return _home() / "backends"


def _server() -> Path:
    return _home() / "bin" / "tritonserver"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
