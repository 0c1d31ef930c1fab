"""Traffic through a gateway whose workers are killed, for a long time.

    python benchmarks/gateway_soak.py [--minutes 30] [--rate 200] [--kill-every 20] [--receipt FILE]

`codedinv serve` with the bundled model and five workers gets Poisson arrivals, by binary HTTP and
gRPC in turn; every 20 s one worker gets SIGKILL. Memory and descriptors of its process are
read every 5 s; growth is the median of the last sixth less that of the second sixth. Connections
that the client has open are not counted among the descriptors, for it opens as many as the load of
the moment needs; and once it has closed them all, the process must be back at as many descriptors
as it had before the first.

Exit code 0 only if no request failed, memory grew by less than 5 % and no descriptor was left over.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import numpy as np
import psutil
import tritonclient.grpc.aio as triton_grpc
import tritonclient.http.aio as triton_http

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from codedinv.data import load_test_images, to_queries  # noqa: E402
from codedinv.experiments.receipts import write_receipt  # noqa: E402
from tests.gateway.servers import Gateway, get, running_gateway  # noqa: E402

MODEL, WORKERS, READ_EVERY_S = "fashion-mnist", 5, 5.0
GROWTH, DESCRIPTORS = 0.05, 8  # a worker that starts has some more for a moment
CLOSED_S = 5.0  # until the gateway has noticed that its clients are gone


class Soak:
    """One run, and what it saw."""

    def __init__(self, gateway: Gateway, seed: int) -> None:
        self._gateway = gateway
        self._random = random.Random(seed)
        self._queries = to_queries(load_test_images()[0][:256])
        self._process = psutil.Process(gateway.process.pid)
        self.failed: Counter[str] = Counter()
        self.sources: Counter[str] = Counter()
        self.latencies: list[float] = []
        self.kills = 0
        self.memory: list[int] = []
        self.descriptors: list[int] = []
        self.connections: list[int] = []
        self.idle = [self._process.num_fds()]

    async def run(self, seconds: float, rate: float, kill_every_s: float) -> None:
        """Sends, kills and reads until the time is over, then waits for the last answers."""
        http = triton_http.InferenceServerClient(self._gateway.ready["http"], conn_limit=256)
        rpc = triton_grpc.InferenceServerClient(self._gateway.ready["grpc"])
        until = time.monotonic() + seconds
        others = [
            asyncio.create_task(self._every(kill_every_s, until, self._kill)),
            asyncio.create_task(self._every(READ_EVERY_S, until, self._read)),
        ]
        waiting: set[asyncio.Task[None]] = set()
        at, number = time.monotonic(), 0
        while (at := at + self._random.expovariate(rate)) < until:
            await asyncio.sleep(max(0.0, at - time.monotonic()))
            client, module = (http, triton_http) if number % 2 else (rpc, triton_grpc)
            task = asyncio.create_task(self._ask(client, module, number, at))
            waiting.add(task)
            task.add_done_callback(waiting.discard)
            number += 1
        await asyncio.gather(*waiting, *others)
        await http.close()
        await rpc.close()
        await asyncio.sleep(CLOSED_S)
        self.idle.append(self._process.num_fds())

    async def _ask(self, client: Any, module: Any, number: int, due: float) -> None:
        x = self._queries[number % 256][np.newaxis]
        tensor = module.InferInput("query", list(x.shape), "FP32")
        tensor.set_data_from_numpy(x)
        try:
            answer = (await client.infer(MODEL, [tensor])).get_response()
        except Exception as error:
            self.failed[f"{type(error).__name__}: {error}"[:200]] += 1
            return
        self.latencies.append(time.monotonic() - due)
        if isinstance(answer, dict):
            self.sources[answer["parameters"]["source"]] += 1
        else:
            self.sources[answer.parameters["source"].string_param] += 1

    @staticmethod
    async def _every(seconds: float, until: float, act: Any) -> None:
        while time.monotonic() + seconds < until:
            await asyncio.sleep(seconds)
            act()

    def _kill(self) -> None:
        workers = [
            p for p in self._process.children() if "codedinv.workers" in " ".join(p.cmdline())
        ]
        if workers:
            os.kill(self._random.choice(workers).pid, signal.SIGKILL)
            self.kills += 1

    def _read(self) -> None:
        self.memory.append(self._process.memory_info().rss)
        clients = [c for c in self._process.net_connections("tcp") if c.status != "LISTEN"]
        self.connections.append(len(clients))
        self.descriptors.append(self._process.num_fds() - len(clients))

    def result(self) -> dict[str, Any]:
        """What it saw, in plain numbers."""
        cuts = quantiles(self.latencies, n=1000)
        return {
            "answered": len(self.latencies),
            "sources": dict(self.sources),
            "failed": dict(self.failed),
            "kills": self.kills,
            "latency_s": {"p50": cuts[499], "p99": cuts[989], "p999": cuts[998]},
            "memory_mib": [round(median(m) / 2**20, 1) for m in _ends(self.memory)],
            "descriptors": [median(d) for d in _ends(self.descriptors)],
            "client_connections": [median(c) for c in _ends(self.connections)],
            "descriptors_when_idle": self.idle,
        }


def _ends(values: list[int]) -> tuple[list[int], list[int]]:
    """The second sixth, and the last."""
    sixth = max(1, len(values) // 6)
    return values[sixth : 2 * sixth], values[-sixth:]


def main() -> int:
    """Runs it, prints and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--rate", type=float, default=200.0, help="queries per second")
    parser.add_argument("--kill-every", type=float, default=20.0, help="seconds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--receipt", type=Path)
    options = parser.parse_args()
    settings = {"models": [{"model": MODEL, "workers": WORKERS}]}
    with (
        tempfile.TemporaryDirectory() as folder,
        running_gateway(Path(folder), settings) as gateway,
    ):
        soak = Soak(gateway, options.seed)
        asyncio.run(soak.run(60 * options.minutes, options.rate, options.kill_every))
        found = soak.result()
        found["ready"] = get(gateway, "/v2/health/ready").status_code == 200
        found["exit_code"] = gateway.stop()
    (early, late), (few, many) = found["memory_mib"], found["descriptors"]
    before, after = found["descriptors_when_idle"]
    found["met"] = (
        not found["failed"]
        and found["ready"]
        and found["exit_code"] == 0
        and late - early < GROWTH * early
        and many - few <= DESCRIPTORS
        and after - before <= DESCRIPTORS
    )
    print(found)
    if options.receipt:
        command = (
            f"python benchmarks/gateway_soak.py --minutes {options.minutes:g} "
            f"--rate {options.rate:g} --kill-every {options.kill_every:g} --seed {options.seed}"
        )
        write_receipt(options.receipt, command, found)
    return 0 if found["met"] else 1


if __name__ == "__main__":
    sys.exit(main())
