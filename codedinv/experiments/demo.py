"""The main job, end to end: real images served through a killed and a slowed worker, then compared.

The same queries arrive at the same times twice: at a coded server and at an uncoded one with as
many workers, which see the same SIGKILL and the same slow worker.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from codedinv import data
from codedinv.bundle import CodedModel
from codedinv.experiments import pictures, view
from codedinv.experiments.receipts import command_line, write_receipt
from codedinv.experiments.tally import Tally
from codedinv.experiments.traffic import Answer, Record, poisson_arrivals, send
from codedinv.serving import CodedServer

SLOW_S = 0.1
_BUSY_WITHIN_S = 0.02  # a query just sent reaches a worker in a millisecond or two
# Shares of the queries; one after the other, as k + 1 workers cover one late or lost result.
_KILL_AT, _SLOW_AT = 0.25, 0.5
# Of all cores, by the backbone alone: the front end and the rest of the system need theirs.
_TARGET_LOAD = 0.2
_RATES = (50.0, 120.0)  # a run of 2,000 queries then lasts 17 to 40 s
_GROUPS_SHOWN = 4


@dataclass(frozen=True)
class Traffic:
    """What both servers are given.

    Attributes:
        queries: float32 (N, *input).
        labels: (N,) true classes.
        arrivals_s: (N,) seconds from the start.
        rate: queries per second.
        note: where the images came from.
    """

    queries: NDArray[np.float32]
    labels: NDArray[np.int64]
    arrivals_s: NDArray[np.float64]
    rate: float
    note: str


def run_demo(
    name_or_folder: str,
    out: Path,
    folder: Path | None,
    queries: int,
    rate: float | None,
    seed: int,
    console: Console,
) -> bool:
    """Runs the demo, prints the comparison and writes latency.png, recovery.png, summary.json.

    Args:
        name_or_folder: of the model.
        out: folder of the figures.
        folder: of the image set; None: where Debian puts it, else the 1,000 bundled images.
        queries: how many to send.
        rate: queries per second; None: what fits this machine.
        seed: of the images' order and the arrivals.
        console: to print on.

    Returns:
        Whether every query of the coded run was answered.
    """
    start = time.monotonic()
    model = CodedModel.load(name_or_folder)
    traffic = prepare(model, folder, queries, rate, seed)
    n, k = model.code.n, model.code.k
    console.print(
        f"{model.name}: (n, k) = ({n}, {k}), {n} worker processes, one backbone thread each. "
        f"{len(traffic.queries):,} queries ({traffic.note}) at {traffic.rate:.0f}/s.",
        highlight=False,
    )
    runs: dict[str, tuple[list[Answer], dict[str, Any]]] = {}
    for label, scheme in (("coded", "invertible"), ("uncoded", "uncoded")):
        runs[label] = _serve(model, traffic, label, scheme, console)
    tallies = {label: Tally.of(answers, traffic.labels) for label, (answers, _) in runs.items()}
    console.print(view.comparison(tallies, {label: stats for label, (_, stats) in runs.items()}))
    out.mkdir(parents=True, exist_ok=True)
    figures = _draw(model, traffic, {label: answers for label, (answers, _) in runs.items()}, out)
    _write_summary(out / "summary.json", model, traffic, tallies, runs)
    for path in (*figures, out / "summary.json"):
        console.print(f"wrote {path}", highlight=False)
    coded = tallies["coded"]
    verdict = f"{coded.answered:,} of {coded.sent:,} queries answered, {coded.lost} lost"
    console.print(f"{verdict}; {time.monotonic() - start:.0f} s in all.", highlight=False)
    return coded.lost == 0


def prepare(
    model: CodedModel, folder: Path | None, count: int, rate: float | None, seed: int
) -> Traffic:
    """Chooses the images, their order, the rate and the arrival times."""
    generator = np.random.default_rng(seed)
    try:
        images, labels = data.load_fashion_mnist("test", folder)
        note = f"of the {len(images):,} Fashion-MNIST test images"
    except FileNotFoundError:
        if folder is not None:
            raise
        images, labels = data.load_test_images()
        note = f"the {len(images):,} bundled Fashion-MNIST test images, repeated"
    # Each image once before any comes again.
    rounds = -(-count // len(images))
    order = np.concatenate([generator.permutation(len(images)) for _ in range(rounds)])[:count]
    rate = rate or _fitting_rate(model)
    arrivals = poisson_arrivals(count, rate, generator)
    return Traffic(data.to_queries(images[order]), labels[order], arrivals, rate, note)


def _fitting_rate(model: CodedModel) -> float:
    """Queries per second at which the workers' backbones take `_TARGET_LOAD` of the cores."""
    query = model.anchors.queries[:1]
    times = []
    for _ in range(30):
        begin = time.perf_counter()
        model.embed(query)
        times.append(time.perf_counter() - begin)
    work_s = float(np.median(times)) * model.code.n / model.code.k
    cores = len(os.sched_getaffinity(0))
    return float(np.clip(_TARGET_LOAD * cores / work_s, *_RATES))


def _serve(
    model: CodedModel, traffic: Traffic, label: str, scheme: str, console: Console
) -> tuple[list[Answer], dict[str, Any]]:
    count = len(traffic.queries)
    record = Record(count)
    with CodedServer(model, workers=model.code.n, backend="process", scheme=scheme) as server:
        for warm_up in [server.submit(query) for query in model.anchors.queries[: model.code.k]]:
            warm_up.result()
        live = view.LiveView(label, record, traffic.labels, server.stats, console)

        victim = 0

        def kill() -> None:
            nonlocal victim
            victim = _busy_worker(server)
            server.pool.kill(victim)
            live.event(victim, "SIGKILL")

        def slow() -> None:
            another = (victim + 1) % model.code.n
            server.pool.slow(another, SLOW_S)
            live.event(another, f"slowed by {1e3 * SLOW_S:.0f} ms")

        events: dict[int, list[Callable[[], None]]] = {}
        events.setdefault(int(_KILL_AT * count), []).append(kill)
        events.setdefault(int(_SLOW_AT * count), []).append(slow)
        with live:
            answers = send(server, traffic.queries, traffic.arrivals_s, record, events)
        return answers, server.stats().to_dict()


def _busy_worker(server: CodedServer) -> int:
    """A worker that holds a query, so that its death would lose one; the first if none gets one."""
    give_up = time.monotonic() + _BUSY_WITHIN_S
    while time.monotonic() < give_up:
        states = server.stats().workers
        if "busy" in states:
            return states.index("busy")
    return 0


def _draw(
    model: CodedModel, traffic: Traffic, runs: dict[str, list[Answer]], out: Path
) -> tuple[Path, Path]:
    count = len(traffic.queries)
    drawn = []
    for label, answers in runs.items():
        answered = [answer for answer in answers if answer.source is not None]
        drawn.append(
            pictures.Run(
                label,
                np.array([answer.arrival_s for answer in answered]),
                np.array([answer.latency_s for answer in answered]),
            )
        )
    events = {
        "a worker is killed": float(traffic.arrivals_s[int(_KILL_AT * count)]),
        f"one is slowed by {1e3 * SLOW_S:.0f} ms": float(traffic.arrivals_s[int(_SLOW_AT * count)]),
    }
    latency, recovery = out / "latency.png", out / "recovery.png"
    pictures.latency_figure(latency, drawn, events)
    shown = _GROUPS_SHOWN * model.code.k
    pictures.recovery_figure(
        recovery,
        model,
        traffic.queries[:shown].reshape(_GROUPS_SHOWN, model.code.k, *model.input_shape),
        traffic.labels[:shown].reshape(_GROUPS_SHOWN, model.code.k),
        data.FASHION_MNIST_CLASSES,
    )
    return latency, recovery


def _write_summary(
    path: Path,
    model: CodedModel,
    traffic: Traffic,
    tallies: dict[str, Tally],
    runs: dict[str, tuple[list[Answer], dict[str, Any]]],
) -> None:
    result = {
        "model": model.name,
        "n": model.code.n,
        "k": model.code.k,
        "workers": model.code.n,
        "queries": len(traffic.queries),
        "images": traffic.note,
        "rate_per_s": traffic.rate,
        "runs": {
            label: tally.to_dict() | {"stats": view.finite(runs[label][1])}
            for label, tally in tallies.items()
        },
    }
    write_receipt(path, command_line(), result)
