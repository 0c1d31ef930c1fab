"""Gateways as processes of their own, as their users run them."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import yaml

from codedinv.model.folder import _checksum

ROOT = Path(__file__).resolve().parents[2]
START_S = 90.0


@dataclass(frozen=True)
class Endpoint:
    """A server of the Open Inference Protocol, as `test_client_api.py` needs to know it.

    Attributes:
        http, grpc: "host:port" of each.
        model: a model that it serves.
        input_name: of its one input, FP32.
        input_shape: of one query, without the batch.
        output_name: of one of its outputs, FP32.
        expected: queries (B, *input) -> what that output must be, (B, ...).
        says_source: the answer's parameters have `source` and `latency`.
        max_batch: queries in a request, at most.
        state_of_index: what the repository index says of the model.
    """

    http: str
    grpc: str
    model: str
    input_name: str
    input_shape: tuple[int, ...]
    output_name: str
    expected: Callable[[Any], Any]
    says_source: bool = False
    max_batch: int = 64
    state_of_index: str = "READY"

    def queries(self, count: int, seed: int = 0) -> Any:
        """Random queries (count, *input) in [0, 1]."""
        return np.random.default_rng(seed).random((count, *self.input_shape), np.float32)


@dataclass
class Gateway:
    """A `codedinv serve` that is ready.

    Attributes:
        process: it.
        ready: the JSON line that it printed.
        log: where its stderr goes.
    """

    process: subprocess.Popen[str]
    ready: Mapping[str, Any]
    log: Path
    stopped: int | None = field(default=None)

    @property
    def url(self) -> str:
        """Of REST."""
        scheme = "https" if self.ready["tls"] else "http"
        return f"{scheme}://{self.ready['http']}"

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Signals it, and returns its exit code."""
        self.process.send_signal(number)
        return self.process.wait(60)

    def lines(self) -> list[dict[str, Any]]:
        """Its log."""
        return [json.loads(line) for line in self.log.read_text().splitlines()]


def start_gateway(
    folder: Path, settings: Mapping[str, Any], *arguments: str, **environment: str
) -> tuple[subprocess.Popen[str], Path]:
    """Starts `codedinv serve` with a file of settings and free ports; does not wait.

    Args:
        folder: for the file and the log.
    """
    file = folder / "server.yaml"
    file.write_text(yaml.safe_dump({"http_port": 0, "grpc_port": 0, **settings}))
    log = folder / "log.jsonl"
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "codedinv", "serve", "--config", str(file), *arguments],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        )
    return process, log


@contextlib.contextmanager
def running_gateway(
    folder: Path, settings: Mapping[str, Any], *arguments: str, **environment: str
) -> Iterator[Gateway]:
    """A gateway that is ready; it is ended if the test did not."""
    folder.mkdir(parents=True, exist_ok=True)
    process, log = start_gateway(folder, settings, *arguments, **environment)
    try:
        assert process.stdout is not None
        readable, _, _ = select.select([process.stdout], [], [], START_S)
        line = process.stdout.readline() if readable else ""
        assert line, f"not ready: {log.read_text()}"
        yield Gateway(process, json.loads(line), log)
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if process.stdout is not None:
            process.stdout.close()


def endpoint_of(gateway: Gateway, bundle: str) -> Endpoint:
    """What `test_client_api.py` needs to know of a gateway with this bundle."""
    from codedinv.model import CodedModel

    model = CodedModel.load(bundle)
    return Endpoint(
        http=gateway.ready["http"],
        grpc=gateway.ready["grpc"],
        model=model.name,
        input_name="query",
        input_shape=model.input_shape,
        output_name="label",
        expected=lambda x: model.head(model.embed(x), "label"),
        says_source=True,
    )


def wait_until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    """Waits for something that is to come true."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not come true in time"
        time.sleep(0.02)


def get(gateway: Gateway, path: str, **options: Any) -> httpx.Response:
    """One GET."""
    return httpx.get(gateway.url + path, timeout=30, **options)


def infer_body(x: Any, **more: Any) -> dict[str, Any]:
    """The JSON of an inference request for queries x."""
    tensor = {
        "name": "query",
        "datatype": "FP32",
        "shape": list(x.shape),
        "data": x.ravel().tolist(),
    }
    return {"inputs": [tensor], **more}


def rename_task(folder: Path, old: str, new: str) -> Path:
    """Lets a bundle call one of its tasks otherwise."""
    file = folder / "bundle.json"
    manifest = json.loads(file.read_text())
    for tasks in (manifest["tasks"], manifest["architecture"]["heads"]):
        tasks[new] = tasks.pop(old)
    files = manifest["files"]
    files[f"head_{new}.onnx"] = files.pop(f"head_{old}.onnx")
    (folder / f"head_{old}.onnx").rename(folder / f"head_{new}.onnx")
    del manifest["checksum"]
    manifest["checksum"] = _checksum(manifest)
    file.write_text(json.dumps(manifest))
    return folder


def copy_bundle(name: str, folder: Path) -> Path:
    """Puts a copy of a bundled model at `folder`, in place of one that is there."""
    if folder.exists():
        folder.rename(folder.with_name(f"old-{time.monotonic_ns()}"))
    shutil.copytree(ROOT / "codedinv" / "bundles" / name, folder.with_name("new"))
    return folder.with_name("new").rename(folder)
