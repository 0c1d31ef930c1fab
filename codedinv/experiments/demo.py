"""The main job, end to end: real images served through a killed and a slowed worker, then compared.

The same queries arrive at the same times at servers of as many workers, which serve them in
different ways and meet the same mishaps: the same worker is killed, the same one slowed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from codedinv.experiments import comparison, pictures, recovery, view
from codedinv.experiments.columns import Column, columns_of
from codedinv.experiments.images import load_test_images
from codedinv.experiments.machine import OthersLoad
from codedinv.experiments.mishaps import Mishap, Mishaps, Struck
from codedinv.experiments.receipts import command_line, write_receipt
from codedinv.experiments.tally import Degraded, Tally, extra_calls
from codedinv.experiments.traffic import Answer, Record, poisson_arrivals, send
from codedinv.model import CodedModel
from codedinv.serving import CodedServer

SLOW_S = 0.1
# Shares of the queries; one after the other, as k + 1 workers cover one late or lost result.
_KILL_AT, _SLOW_AT = 0.25, 0.5
# Of all cores, by the backbones alone at (k + 1) / k calls per query: the front end, replication's
# second copies and the rest of the system need theirs.
_TARGET_LOAD = 0.2
_RATES = (50.0, 120.0)  # a run of 1,200 queries then lasts 10 to 24 s
# Before the traffic: hedging believes its p95 after 20 results.
_WARM_UP_ROUNDS = 8


@dataclass(frozen=True)
class Traffic:
    """What every server is given.

    Attributes:
        queries: float32 (N, *input).
        labels: (N,) true classes.
        class_names: by label.
        arrivals_s: (N,) seconds from the start.
        rate: queries per second.
        source: where the images came from.
    """

    queries: NDArray[np.float32]
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]
    arrivals_s: NDArray[np.float64]
    rate: float
    source: str


@dataclass(frozen=True)
class Run:
    """What came of one column.

    Attributes:
        column: how it was served.
        answers: in the order of arrival.
        tally, degraded: of these.
        struck: what was done to the workers.
        stats: of the server at its end, plain values.
        extra: backbone calls beyond one per query, per query, by kind and "all".
        others: cores that other processes kept busy meanwhile; None where that is not known.
    """

    column: Column
    answers: list[Answer]
    tally: Tally
    degraded: Degraded
    struck: list[Struck]
    stats: dict[str, Any]
    extra: dict[str, float]
    others: float | None


def run_demo(
    name_or_folder: str,
    out: Path,
    folder: Path | None,
    queries: int,
    rate: float | None,
    seed: int,
    console: Console,
    devices: Sequence[str] = ("cpu",),
) -> bool:
    """Runs the demo, prints the comparison, writes latency.png, comparison.md and summary.json, and
    recovery.png where queries are images and something recovers them.

    Args:
        name_or_folder: of the model.
        out: folder of the figures.
        folder: of test images; None: those of the data set that the model has learnt.
        queries: how many to send in each run.
        rate: queries per second; None: what fits this machine.
        seed: of the images' order and the arrivals.
        console: to print on.
        devices: of the workers, as `CodedServer` takes them.

    Returns:
        Whether every query of the coded runs was answered.

    Raises:
        ValueError, FileNotFoundError: the images do not fit the model, or are not there.
    """
    start = time.monotonic()
    model = CodedModel.load(name_or_folder)
    traffic = prepare(model, folder, queries, rate, seed)
    columns, omitted = columns_of(model)
    n, k = model.code.n, model.code.k
    console.print(
        f"{model.name}: (n, k) = ({n}, {k}), {n} worker processes. {len(columns)} runs of "
        f"{queries:,} queries at {traffic.rate:.0f}/s; images: {traffic.source}; "
        f"devices: {', '.join(devices)}.",
        highlight=False,
        soft_wrap=True,
    )
    runs = [serve(model, traffic, column, console, devices) for column in columns]
    summary = {**summarise(model, traffic, runs, omitted), "devices": list(devices)}
    console.print(comparison.table(summary))
    for line in comparison.caption(summary):
        console.print(line, highlight=False, markup=False)
    _write(out, model, traffic, runs, summary, console)
    console.print(f"{verdict(runs)}; {time.monotonic() - start:.0f} s in all.", highlight=False)
    return not any(run.tally.lost for run in runs if run.column.coded)


def prepare(
    model: CodedModel, folder: Path | None, count: int, rate: float | None, seed: int
) -> Traffic:
    """Chooses the images, their order, the rate and the arrival times."""
    test = load_test_images(model, folder)
    generator = np.random.default_rng(seed)
    # Each image once before any comes again.
    rounds = -(-count // len(test.labels))
    order = np.concatenate([generator.permutation(len(test.labels)) for _ in range(rounds)])[:count]
    rate = _fitting_rate(model) if rate is None else rate
    arrivals = poisson_arrivals(count, rate, generator)
    return Traffic(
        test.queries[order], test.labels[order], test.class_names, arrivals, rate, test.source
    )


def plan_mishaps(workers: int, queries: int) -> list[Mishap]:
    """One worker is killed after a quarter of the queries, another slowed after half of them."""
    return [
        Mishap("kill", workers // 3, int(_KILL_AT * queries)),
        Mishap("slow", 2 * workers // 3, int(_SLOW_AT * queries), SLOW_S),
    ]


def serve(
    model: CodedModel,
    traffic: Traffic,
    column: Column,
    console: Console,
    devices: Sequence[str] = ("cpu",),
) -> Run:
    """One run: a server, the traffic, the mishaps."""
    count, workers = len(traffic.queries), model.code.n
    record, load = Record(count), OthersLoad()
    with CodedServer(
        model, workers, "process", column.policy, column.scheme, devices=devices
    ) as server:
        warm_up(server, model)
        before = server.stats().to_dict()
        live = view.LiveView(
            column.label,
            count,
            lambda: Tally.of(record.answers(), traffic.labels),
            server.stats,
            console,
        )
        mishaps = Mishaps(
            server, plan_mishaps(workers, count), lambda m: live.event(m.worker, str(m))
        )
        with live:
            answers = send(server, traffic.queries, traffic.arrivals_s, record, mishaps.after_query)
        stats = server.stats().to_dict()
    others = load.cores()
    tally = Tally.of(answers, traffic.labels)
    console.print(
        f"{column.label}: {view.summary_of(tally)}", highlight=False, markup=False, soft_wrap=True
    )
    degraded = Degraded.of(answers, model, traffic.queries, traffic.labels)
    extra = extra_calls(before, stats)
    return Run(column, answers, tally, degraded, mishaps.struck, stats, extra, others)


def warm_up(server: CodedServer, model: CodedModel) -> None:
    """Has every worker answered a few times, and the encoder run, before anything is timed."""
    anchors = model.anchors.queries
    for first in range(_WARM_UP_ROUNDS):
        picked = [(first + i) % len(anchors) for i in range(model.code.n)]
        for future in [server.submit(anchors[i]) for i in picked]:
            future.result()


def summarise(
    model: CodedModel, traffic: Traffic, runs: list[Run], omitted: dict[str, str]
) -> dict[str, Any]:
    """Everything as plain JSON values; the comparison is made of it."""
    return {
        "model": model.name,
        "n": model.code.n,
        "k": model.code.k,
        "workers": model.code.n,
        "queries": len(traffic.queries),
        "images": traffic.source,
        "rate_per_s": traffic.rate,
        "cores": len(os.sched_getaffinity(0)),
        "omitted": omitted,
        "runs": {
            run.column.label: {
                **run.tally.to_dict(),
                "degraded": run.degraded.to_dict(),
                "extra_calls": run.extra,
                "front_end": run.column.front_end,
                "others_cores": run.others,
                "mishaps": [
                    {**asdict(s.mishap), "happened_after": s.query, "at_work": s.at_work}
                    for s in run.struck
                ],
                "stats": view.finite(run.stats),
            }
            for run in runs
        },
    }


def verdict(runs: list[Run]) -> str:
    """What the exit code says, in words."""
    coded = [run for run in runs if run.column.coded]
    each = (
        f"{run.column.label}: {run.tally.answered:,} of {run.tally.sent:,} answered, "
        f"{run.tally.lost} lost"
        for run in coded
    )
    return "; ".join(each)


def _fitting_rate(model: CodedModel) -> float:
    """Queries per second at which the workers' backbones take `_TARGET_LOAD` of the cores."""
    query = model.anchors.queries[:1]
    times = []
    for _ in range(60):
        begin = time.perf_counter()
        model.embed(query)
        times.append(time.perf_counter() - begin)
    # A p90 and no median: on a busy machine it is the slow calls that fill the queues.
    work_s = float(np.quantile(times, 0.9)) * model.code.n / model.code.k
    cores = len(os.sched_getaffinity(0))
    return float(np.clip(_TARGET_LOAD * cores / work_s, *_RATES))


def _write(
    out: Path,
    model: CodedModel,
    traffic: Traffic,
    runs: list[Run],
    summary: dict[str, Any],
    console: Console,
) -> None:
    out.mkdir(parents=True, exist_ok=True)
    killed, slowed = plan_mishaps(model.code.n, len(traffic.queries))
    pictures.latency_figure(
        out / "latency.png",
        [pictures.Course.of(run.column.label, run.answers) for run in runs],
        killed_s=float(traffic.arrivals_s[killed.after]),
        slow_s=(float(traffic.arrivals_s[slowed.after]), float(traffic.arrivals_s[-1])),
    )
    written = ["latency.png", "comparison.md", "summary.json"]
    if recovery.can_be_drawn(model):
        groups = recovery.choose(model, traffic.queries, traffic.labels)
        recovery.draw(out / "recovery.png", groups, traffic.class_names)
        written.insert(1, "recovery.png")
    (out / "comparison.md").write_text(comparison.markdown(summary) + "\n")
    write_receipt(out / "summary.json", command_line(), summary)
    for name in written:
        console.print(f"wrote {out / name}", highlight=False, soft_wrap=True)
