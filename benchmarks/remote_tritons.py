"""Coded and uncoded in front of the same five real Tritons, of which one is killed and one is slow.

    python -m benchmarks.remote_tritons --receipt benchmarks/receipts/remote-tritons.json

Each round sends the same queries at the same Poisson times through a coded and an uncoded server.
After a quarter of them one Triton gets SIGKILL; from the half on another takes `--slow` seconds
longer for each query. The dead one is started again before the next round, not during it: elsewhere
it has a machine of its own, and here its start would take the processor from all others. Tritons
need `make test-servers` once.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from codedinv.data import load_test_images, to_queries
from codedinv.experiments.receipts import write_receipt
from codedinv.experiments.traffic import Answer, Record, poisson_arrivals, send
from codedinv.model import CodedModel
from codedinv.serving import CodedServer
from codedinv.triton_repo import write_repository
from tests import triton_servers
from tests.triton_servers import Triton

WORKERS = 5
SCHEMES = {"coded": "invertible", "uncoded": "uncoded"}
_BAR = 0.5  # of uncoded's p99
_KILLED, _SLOWED = 1, 3
# Appended to the exported model.py: a slow machine, as slow as a file says.
_SLOW_SWITCH = """

import time

_answer = TritonPythonModel._answer


def _slow_answer(self, request):
    switch = Path(__file__).parents[1] / "slow"
    if switch.exists():
        time.sleep(float(switch.read_text() or 0))
    return _answer(self, request)


TritonPythonModel._answer = _slow_answer
"""


@dataclass
class Fleet:
    """Five Tritons, each with a model repository of its own.

    Attributes:
        folder: of repositories and logs.
        name: of the model.
        tritons: running.
    """

    folder: Path
    name: str
    tritons: list[Triton]

    @classmethod
    def start(cls, model: CodedModel, folder: Path) -> Fleet:
        fleet = cls(folder, model.name, [])
        for number in range(WORKERS):
            written = write_repository(model, fleet.repository(number))
            with (written / "1" / "model.py").open("a") as file:
                file.write(_SLOW_SWITCH)
            fleet.tritons.append(triton_servers.start(fleet.repository(number), folder))
        triton_servers.wait_until_ready(fleet.tritons)
        return fleet

    def repository(self, number: int) -> Path:
        return self.folder / f"repository-{number}"

    @property
    def endpoints(self) -> list[str]:
        """gRPC and HTTP, by turns."""
        return [t.http if i % 2 else t.grpc for i, t in enumerate(self.tritons)]

    def mend(self) -> None:
        """Starts those again that were killed, on their ports, and slows none."""
        for number, old in enumerate(self.tritons):
            self.slow(number, 0.0)
            if old.process.poll() is not None:
                ports = old.http_port, old.grpc_port
                new = triton_servers.start(self.repository(number), self.folder, ports)
                self.tritons[number] = new
        triton_servers.wait_until_ready(self.tritons)

    def slow(self, number: int, seconds: float) -> None:
        """Each query takes so much longer from now on."""
        (self.repository(number) / self.name / "slow").write_text(f"{seconds}")

    def stop(self) -> None:
        for triton in self.tritons:
            triton.kill()


def run_round(
    fleet: Fleet, model: CodedModel, scheme: str, queries: Any, arrivals: Any, slow_s: float
) -> list[Answer]:
    """The answers of one server to one round of traffic."""
    fleet.mend()
    count = len(queries)

    events: dict[int, Callable[[], None]] = {
        count // 4: fleet.tritons[_KILLED].kill,
        count // 2: lambda: fleet.slow(_SLOWED, slow_s),
    }

    def after_query(number: int) -> None:
        if number in events:  # in a thread of its own: the traffic must not wait for it
            threading.Thread(target=events[number]).start()

    with CodedServer(model, workers=fleet.endpoints, scheme=scheme) as server:
        for future in [server.submit(query) for query in queries[:50]]:
            future.result()  # connections are warm, on both sides
        return send(server, queries, arrivals, Record(count), after_query)


def compare(
    model: CodedModel, queries: int, rate: float, rounds: int, seed: int, slow_s: float
) -> dict[str, Any]:
    """Both servers, round after round: latency quantiles over all rounds, and failed requests."""
    images = to_queries(load_test_images()[0])
    folder = Path(tempfile.mkdtemp(prefix="codedinv-tritons-"))
    found: dict[str, list[Answer]] = {name: [] for name in SCHEMES}
    fleet = None
    try:
        fleet = Fleet.start(model, folder)
        for number in range(rounds):
            generator = np.random.default_rng(seed + number)
            chosen = images[generator.integers(len(images), size=queries)]
            arrivals = poisson_arrivals(queries, rate, generator)
            for name, scheme in SCHEMES.items():
                found[name] += run_round(fleet, model, scheme, chosen, arrivals, slow_s)
    finally:
        if fleet is not None:
            fleet.stop()
        shutil.rmtree(folder, ignore_errors=True)
    result: dict[str, Any] = {name: summary(answers) for name, answers in found.items()}
    result["p99_ratio"] = result["coded"]["p99_ms"] / result["uncoded"]["p99_ms"]
    result["met"] = result["coded"]["failed"] == 0 and result["p99_ratio"] < _BAR
    return result


def summary(answers: list[Answer]) -> dict[str, Any]:
    """Counts and quantiles; a failed request has no latency."""
    latencies = [1e3 * a.latency_s for a in answers if a.source is not None]
    quantiles = np.quantile(latencies, [0.5, 0.99, 0.999], method="higher")
    sources = [a.source for a in answers]
    return {
        "requests": len(answers),
        "failed": sources.count(None),
        **dict(zip(("p50_ms", "p99_ms", "p99.9_ms"), map(float, quantiles), strict=True)),
        "sources": {s: sources.count(s) for s in sorted({s for s in sources if s})},
    }


def table(result: dict[str, Any]) -> str:
    """The result as docs/embedding.md shows it."""
    lines = [
        "| | requests | failed | p50 ms | p99 ms | p99.9 ms |",
        "|---|---|---|---|---|---|",
    ]
    for name in SCHEMES:
        row = result[name]
        times = " | ".join(f"{row[key]:.0f}" for key in ("p50_ms", "p99_ms", "p99.9_ms"))
        lines.append(f"| {name} | {row['requests']} | {row['failed']} | {times} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="fashion-mnist")
    parser.add_argument("--queries", type=int, default=600, help="of a round")
    parser.add_argument("--rate", type=float, default=20.0, help="queries per second")
    parser.add_argument("--slow", type=float, default=0.1, help="seconds more for each query")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--receipt")
    options = parser.parse_args()
    if reason := triton_servers.missing():
        print(reason, file=sys.stderr)
        return 2
    model = CodedModel.load(options.model)
    traffic = options.queries, options.rate, options.rounds, options.seed
    result = compare(model, *traffic, options.slow)
    for name in SCHEMES:
        row = result[name]
        print(
            f"{name:8} {row['requests']} requests, {row['failed']} failed, p50 {row['p50_ms']:.1f} "
            f"p99 {row['p99_ms']:.1f} p99.9 {row['p99.9_ms']:.1f} ms, {row['sources']}"
        )
    print(f"p99 coded / uncoded {result['p99_ratio']:.2f}: {'met' if result['met'] else 'MISSED'}")
    if options.receipt:
        shown = {key: value for key, value in vars(options).items() if key != "receipt"}
        command = " ".join(["python -m benchmarks.remote_tritons", *sys.argv[1:]])
        load = {"load_average": [round(x, 1) for x in os.getloadavg()]}
        write_receipt(options.receipt, command, {**shown, **load, **result})
    return 0 if result["met"] else 1


if __name__ == "__main__":
    sys.exit(main())
