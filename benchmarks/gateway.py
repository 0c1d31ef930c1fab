"""Throughput and latency of the gateway beside a plain prototype and kserve's host.

    python benchmarks/gateway.py [--rounds 15] [--kserve-python PATH] [--receipt FILE]

784 floats to a host and 10 back, by JSON, binary HTTP and gRPC, 8 requests at a time, hosts in turn
in many short rounds of one run; each host's best round counts, for what else runs on the machine
only takes away. The hosts `plain`, `kserve` and `gateway` answer by themselves; `uncoded` and
`coded` are the gateway with worker processes behind it. The latency that codedinv adds is the
median of one request at a time with workers, less that of `gateway`. kserve 0.21 needs an
environment of its own: its interpreter is `--kserve-python`; without it that part is left out.

Exit code 0 only if the bars that were measured are met: binary HTTP at least 3 times kserve's, gRPC
at least kserve's, and less than 0.5 ms added.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import grpc
import numpy as np
import uvloop

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from codedinv.experiments.receipts import write_receipt  # noqa: E402
from codedinv.oip import InferRequest, RequestedOutput, Tensor, grpc_codec, rest  # noqa: E402

MODEL, AT_ONCE = "m", 8
PROTOCOLS = ("json", "binary", "grpc")
START_S, PATIENCE_S = 120.0, 30.0
Ask = Callable[[], Awaitable[None]]


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@contextlib.contextmanager
def running_host(host: str, python: str) -> Iterator[tuple[int, int]]:
    """A host in a process of its own; its ports."""
    ports = free_port(), free_port()
    process = subprocess.Popen(
        [python, str(ROOT / "benchmarks" / "gateway_hosts.py"), host, *map(str, ports)],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    try:
        assert process.stdout is not None
        readable, _, _ = select.select([process.stdout], [], [], START_S)
        if not readable or process.stdout.readline() != "ready\n":
            raise RuntimeError(f"{host} did not start")
        for port in ports:
            _wait_for(port)
        yield ports
    finally:
        process.terminate()
        process.wait(30)


def _wait_for(port: int) -> None:
    until = time.monotonic() + START_S
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return
        if time.monotonic() > until:
            raise RuntimeError(f"nobody listens on port {port}")
        time.sleep(0.05)


class Asker:
    """One client with one connection; its request is made once."""

    def __init__(self, protocol: str, ports: tuple[int, int]) -> None:
        x = np.random.default_rng(0).random((1, 1, 28, 28), np.float32)
        binary = protocol != "json"
        request = InferRequest([Tensor("query", x)], [RequestedOutput("label", binary)], "1")
        self._ports = ports
        self._is_grpc = protocol == "grpc"
        if self._is_grpc:
            self._wire = grpc_codec.encode_request(MODEL, request).SerializeToString()
            return
        body, length = rest.encode_request(request, binary)
        headers = [f"POST /v2/models/{MODEL}/infer HTTP/1.1", "Host: 127.0.0.1"]
        headers += [f"Content-Length: {len(body)}", "Content-Type: application/json"]
        if length is not None:
            headers[-1] = "Content-Type: application/octet-stream"
            headers.append(f"{rest.HEADER_LENGTH}: {length}")
        self._wire = "\r\n".join([*headers, "", ""]).encode() + body

    async def connect(self) -> None:
        """Opens the connection."""
        if self._is_grpc:
            self._channel = grpc.aio.insecure_channel(
                f"127.0.0.1:{self._ports[1]}", [("grpc.use_local_subchannel_pool", 1)]
            )
            self._call = self._channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
            return
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._ports[0])

    async def ask(self) -> None:
        """One request and its answer."""
        if self._is_grpc:
            await self._call(self._wire)
            return
        self._writer.write(self._wire)
        head = await self._reader.readuntil(b"\r\n\r\n")
        if b" 200 " not in head[:20]:
            raise RuntimeError(head.decode())
        length = head.lower().split(b"\r\ncontent-length:")[1].split(b"\r\n")[0]
        await self._reader.readexactly(int(length))

    async def close(self) -> None:
        """Closes it."""
        if self._is_grpc:
            await self._channel.close()
        else:
            self._writer.close()


async def measure(
    protocol: str, ports: tuple[int, int], at_once: int, seconds: float
) -> tuple[float, float]:
    """Requests per second, and the median of their latency in seconds."""
    askers = [Asker(protocol, ports) for _ in range(at_once)]
    latencies: list[float] = []

    async def keep_asking(asker: Asker) -> None:
        while (began := time.perf_counter()) < until:
            await asker.ask()
            latencies.append(time.perf_counter() - began)

    for asker in askers:
        await asker.connect()
        for _ in range(20):
            await asker.ask()
    start = time.perf_counter()
    until = start + seconds
    await asyncio.wait_for(asyncio.gather(*map(keep_asking, askers)), seconds + PATIENCE_S)
    took = time.perf_counter() - start
    for asker in askers:
        await asker.close()
    return len(latencies) / took, median(latencies)


def run(hosts: dict[str, tuple[int, int]], seconds: float, rounds: int) -> dict[str, Any]:
    """By host and protocol, the best rounds: requests per second at 8, seconds at one at a time."""
    found: dict[str, Any] = {
        host: {p: {"per_second": [], "alone_s": []} for p in PROTOCOLS} for host in hosts
    }
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        for number in range(rounds):
            for protocol in PROTOCOLS:
                for host, ports in hosts.items():
                    rate, _ = runner.run(measure(protocol, ports, AT_ONCE, seconds))
                    _, alone = runner.run(measure(protocol, ports, 1, seconds / 3))
                    found[host][protocol]["per_second"].append(rate)
                    found[host][protocol]["alone_s"].append(alone)
                    print(f"{number} {protocol:7}{host:9}{rate:8.0f}/s {1e3 * alone:7.3f} ms")
    for protocols in found.values():
        for values in protocols.values():
            values["per_second"] = max(values["per_second"])
            values["alone_s"] = min(values["alone_s"])
    return found


def bars(found: dict[str, Any]) -> list[dict[str, Any]]:
    """What is claimed, and whether it holds."""
    claims = []

    def add(claim: str, measured: float, limit: float, at_most: bool) -> None:
        met = measured <= limit if at_most else measured >= limit
        claims.append({"claim": claim, "measured": measured, "bar": limit, "met": met})

    ours = found["gateway"]
    for protocol, least in (("binary", 3.0), ("grpc", 1.0)):
        if "kserve" in found:
            ratio = ours[protocol]["per_second"] / found["kserve"][protocol]["per_second"]
            add(f"{protocol}: gateway over kserve", ratio, least, at_most=False)
        for host in ("uncoded", "coded"):
            added = 1e3 * (found[host][protocol]["alone_s"] - ours[protocol]["alone_s"])
            add(f"{protocol}: median added by {host}, ms", added, 0.5, at_most=True)
    return claims


def main() -> int:
    """Runs it, prints the bars, writes the receipt."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=0.6)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--kserve-python")
    parser.add_argument("--receipt", type=Path)
    options = parser.parse_args()
    pythons = dict.fromkeys(("plain", "gateway", "uncoded", "coded"), sys.executable)
    if options.kserve_python:
        pythons["kserve"] = options.kserve_python
    with contextlib.ExitStack() as stack:
        hosts = {h: stack.enter_context(running_host(h, p)) for h, p in pythons.items()}
        found = run(hosts, options.seconds, options.rounds)
    claims = bars(found)
    for claim in claims:
        verdict = "met" if claim["met"] else "MISSED"
        print(f"{claim['claim']:36}{claim['measured']:8.3f}  bar {claim['bar']:<5} {verdict}")
    if options.receipt:
        command = f"python benchmarks/gateway.py --seconds {options.seconds:g} "
        command += f"--rounds {options.rounds} --kserve-python PATH"
        write_receipt(options.receipt, command, {"hosts": found, "bars": claims})
    return 0 if all(claim["met"] for claim in claims) else 1


if __name__ == "__main__":
    sys.exit(main())
