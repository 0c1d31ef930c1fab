"""A minute or an hour of bad luck with real processes, and the verdict whether it was noticed.

Poisson arrivals meet a server whose workers are killed, hung, slowed, stopped, made to err and to
lie, whose front end is stopped, whose bundle is replaced on disk, which is redeployed and now and
then given twice what it can do. Every answer is compared with the model's own.
"""

from __future__ import annotations

import gc
import os
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from codedinv import data
from codedinv.experiments import view
from codedinv.experiments.compact_record import CompactRecord, touched
from codedinv.experiments.mischief import (
    Fault,
    Mischief,
    copy_of,
    drifted_copy,
    stop_this_process,
    swap_folders,
)
from codedinv.experiments.receipts import command_line, write_receipt
from codedinv.experiments.traffic import Answer
from codedinv.model import CodedModel
from codedinv.serving import CodedServer, Policy, Prediction

BURST_EVERY_S, BURST_S, BURST_RATE = 20.0, 1.0, 1500.0
_LATE_S = 0.005  # allowed beyond a deadline
# The sender of the traffic, the mischief and the view share the server's interpreter here, and each
# may keep it for Python's switch interval of 5 ms.
_MARGIN_S = 0.02
_ANSWERED = 0.999  # at least, of the queries outside bursts
_SETTLE_S = 2.0  # after a burst or a stop the queue still empties


@dataclass(frozen=True)
class Arrivals:
    """When queries come.

    Attributes:
        times_s: ascending, from the start.
        in_burst: of each, whether it comes in a burst or just after.
    """

    times_s: NDArray[np.float64]
    in_burst: NDArray[np.bool_]


def plan_arrivals(seconds: float, rate: float, random: np.random.Generator) -> Arrivals:
    """A Poisson process at `rate`, and bursts of `BURST_RATE` every `BURST_EVERY_S`."""
    steady = _poisson(0.0, seconds, rate, random)
    starts = np.arange(BURST_EVERY_S / 2, seconds - BURST_S - _SETTLE_S, BURST_EVERY_S)
    bursts = [_poisson(start, BURST_S, BURST_RATE, random) for start in starts]
    times = np.sort(np.concatenate([steady, *bursts]))
    in_burst = np.zeros(len(times), bool)
    for start in starts:
        in_burst |= (times >= start) & (times < start + BURST_S + _SETTLE_S)
    return Arrivals(times, in_burst)


def _poisson(
    start: float, seconds: float, rate: float, random: np.random.Generator
) -> NDArray[np.float64]:
    return start + np.sort(random.uniform(0.0, seconds, random.poisson(rate * seconds)))


@dataclass
class Footprint:
    """What this process holds: resident memory in MB, descriptors, threads."""

    memory_mb: float
    descriptors: int
    threads: int

    @classmethod
    def now(cls) -> Footprint:
        """Measures this process."""
        gc.collect()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        memory = pages * os.sysconf("SC_PAGE_SIZE") / 2**20
        return cls(memory, len(os.listdir("/proc/self/fd")), threading.active_count())


def run_chaos(
    name_or_folder: str,
    seconds: float,
    rate: float,
    deadline_s: float,
    seed: int,
    out: Path | None,
    console: Console,
) -> bool:
    """Runs it, prints the summary, writes a receipt.

    Args:
        name_or_folder: of the model.
        seconds: how long queries come.
        rate: queries per second, besides bursts.
        deadline_s: of each query.
        seed: of arrivals and faults.
        out: JSON file of the receipt; None: none is written.
        console: to print on.

    Returns:
        Whether every promise of docs/serving.md was kept.
    """
    images, labels = data.load_test_images()
    queries = data.to_queries(images)
    arrivals = plan_arrivals(seconds, rate, np.random.default_rng(seed))
    count = len(arrivals.times_s)
    with tempfile.TemporaryDirectory(prefix="codedinv-chaos-") as temporary:
        source = CodedModel.load(name_or_folder)
        if source.folder is None:
            raise ValueError(f"model: expected one with a folder, got {source}")
        folder = copy_of(source.folder, Path(temporary) / "bundle")
        other = drifted_copy(source.folder, Path(temporary) / "other")
        model = CodedModel.load(folder)
        expected = np.asarray(model.head(model.embed(queries)), np.float32)
        order = np.random.default_rng(seed + 1).integers(0, len(queries), count)
        console.print(
            f"{model.name}: {count:,} queries in {seconds:.0f} s, {rate:.0f}/s and bursts of "
            f"{BURST_RATE:.0f}/s, each with a deadline of {1e3 * deadline_s:.0f} ms",
            highlight=False,
        )
        policy = Policy(
            hang_timeout_s=1.0,
            deadline_margin_s=_MARGIN_S,
            restart_backoff_s=0.1,
            verify=True,
            max_queue=4096,
        )
        with CodedServer(model, workers=model.code.n + 1, policy=policy) as server:
            run = _Run(
                server, queries, labels, order, arrivals, deadline_s, expected.shape[1], console
            )
            faults = _faults(server, folder, other, Path(temporary))
            run.go(faults, Random(seed))
            stats = server.stats().to_dict()
    verdict = run.verdict(expected)
    console.print(_summary(run, verdict, stats))
    if out is not None:
        result = {**verdict, "faults": dict(run.mischief.counts), "stats": view.finite(stats)}
        write_receipt(out, command_line(), {"model": model.name, "seed": seed, **result})
        console.print(f"wrote {out}", highlight=False)
    return all(verdict["kept"].values())


def _faults(server: CodedServer, folder: Path, other: Path, temporary: Path) -> list[Fault]:
    pool: Any = server.pool

    def replace(worker: int) -> None:
        swap_folders(folder, other)
        pool.kill(worker)  # whoever starts now must not take the other one for its own

    def reload(worker: int) -> None:
        server.reload(copy_of(folder, Path(tempfile.mkdtemp(dir=temporary)) / "bundle"))

    return [
        Fault("SIGKILL", pool.kill),
        Fault("crashes", pool.crash),
        Fault("hangs", pool.hang, None, 1.5),
        Fault("100 ms slower", lambda w: pool.slow(w, 0.1), lambda w: pool.slow(w, 0.0), 2.0),
        Fault(
            "fails every task",
            lambda w: pool.fail(w, "CUDA error"),
            lambda w: pool.fail(w, ""),
            2.0,
        ),
        Fault(
            "noise on results", lambda w: pool.corrupt(w, 1.0), lambda w: pool.corrupt(w, 0.0), 2.0
        ),
        Fault("repeats an old answer", pool.stick, pool.kill, 2.0),
        Fault("other weights", lambda w: pool.impersonate(w, other), pool.kill, 2.0),
        Fault("SIGSTOP", pool.pause, pool.resume, 0.7),
        Fault("front end stopped", lambda _: stop_this_process(1.5), is_stop=True),
        Fault("bundle replaced", replace, lambda _: swap_folders(folder, other), 1.5),
        Fault("redeployed", reload),
    ]


class _Run:
    """The traffic, its record and what it cost."""

    def __init__(
        self,
        server: CodedServer,
        queries: NDArray[np.float32],
        labels: NDArray[np.int64],
        order: NDArray[np.int64],
        arrivals: Arrivals,
        deadline_s: float,
        outputs: int,
        console: Console,
    ) -> None:
        self._server = server
        self._queries, self._order = queries, order
        self.labels = labels[order]
        self.arrivals = arrivals
        self._deadline_s = deadline_s
        self.count = len(order)
        # All the memory that the record takes is there at the start: what grows is the server's.
        self.record = CompactRecord(self.count, outputs)
        self.submitted = touched(self.count, np.float64)
        self.ended = touched(self.count, np.float64)
        self._live = view.LiveView(
            "chaos", self.count, lambda: self.record.tally(self.labels), server.stats, console
        )
        self.footprints: list[Footprint] = []
        self.mischief: Mischief

    def go(self, faults: list[Fault], random: Random) -> None:
        """Sends everything, and waits for the last."""
        workers = len(self._server.stats().workers)
        self.mischief = Mischief(faults, workers, random, self._live.event)
        with self._live:
            self.mischief.start()
            start = time.monotonic()
            for number, at in enumerate(self.arrivals.times_s):
                time.sleep(max(0.0, start + at - time.monotonic()))
                self._send(number, float(at))
                if number in (self.count // 10, self.count // 2):
                    self.footprints.append(Footprint.now())
            self.mischief.stop()
            self.record.wait(30.0)
        self.footprints.append(Footprint.now())

    def _send(self, number: int, at: float) -> None:
        self.submitted[number] = time.monotonic()
        self.record.sent = number + 1
        try:
            future = self._server.submit(
                self._queries[self._order[number]], deadline=self._deadline_s
            )
        except Exception as error:
            self._end(number, at, None, error)
            return

        def done(future: Any) -> None:
            error = future.exception()
            self._end(number, at, None if error else future.result(), error)

        future.add_done_callback(done)

    def _end(
        self, number: int, at: float, p: Prediction | None, error: BaseException | None
    ) -> None:
        took = p.latency if p is not None else time.monotonic() - self.submitted[number]
        self.ended[number] = self.submitted[number] + took
        source = p.source if p is not None else None
        outputs = next(iter(p.outputs.values())) if p is not None else None
        self.record.add(Answer(number, at, took, source, outputs, error))

    def verdict(self, expected: NDArray[np.float32]) -> dict[str, Any]:
        """What was promised, and whether it was kept."""
        answers = self.record.answers()
        answered = np.zeros(self.count, bool)
        answered[[a.query for a in answers if a.source is not None]] = True
        stopped = self._met_a_stop()
        judged = ~self.arrivals.in_burst & ~stopped
        late_s = self.ended - self.submitted - self._deadline_s
        errors = Counter(type(a.error).__name__ for a in answers if a.error is not None)
        exact = [a for a in answers if a.source in ("exact", "hedged") and a.outputs is not None]
        wrong = sum(
            float(np.abs(a.outputs - expected[self._order[a.query]]).max()) > 1e-3 for a in exact
        )
        first, last = self.footprints[0], self.footprints[-1]
        share = float(answered[judged].mean())
        return {
            "queries": self.count,
            "answered": int(answered.sum()),
            "answered_outside_bursts": share,
            "in_bursts": int(self.arrivals.in_burst.sum()),
            "answered_in_bursts": int(answered[self.arrivals.in_burst].sum()),
            "met_a_stop_of_the_front_end": int(stopped.sum()),
            "errors": dict(errors),
            "latest_s": float(late_s[~stopped].max()),
            "exact_answers": len(exact),
            "exact_answers_wrong": int(wrong),
            "footprint": [vars(f) for f in self.footprints],
            "kept": {
                "every query ended exactly once": bool((self.record.ends == 1).all()),
                f"none later than its deadline + {1e3 * _LATE_S:.0f} ms": bool(
                    late_s[~stopped].max() <= _LATE_S
                ),
                f"{_ANSWERED:.1%} answered outside bursts": share >= _ANSWERED,
                "descriptors and threads flat": (
                    last.descriptors <= first.descriptors + 8 and last.threads <= first.threads + 2
                ),
                "memory flat": last.memory_mb <= 1.1 * first.memory_mb + 20,
            },
        }

    def _met_a_stop(self) -> NDArray[np.bool_]:
        """Queries whose time overlaps one in which this process, and its clock, stood still."""
        met = np.zeros(self.count, bool)
        for began, ended in self.mischief.stops:
            met |= (self.submitted < ended + _SETTLE_S) & (self.ended > began)
        return met


def _summary(run: _Run, verdict: dict[str, Any], stats: dict[str, Any]) -> Table:
    table = Table(title="what happened", show_header=False)
    tally = run.record.tally(run.labels)
    faults = ", ".join(f"{count} x {name}" for name, count in run.mischief.counts.items())
    rows = {
        "faults": faults,
        "queries": f"{verdict['queries']:,}, {verdict['answered']:,} answered",
        "outside bursts": f"{verdict['answered_outside_bursts']:.3%} answered",
        "by source": ", ".join(f"{n:,} {source}" for source, n in tally.by_source.items()),
        "errors": ", ".join(f"{n:,} {e}" for e, n in verdict["errors"].items()) or "none",
        "exact answers that were wrong": f"{verdict['exact_answers_wrong']:,}, while a worker lied",
        "latency p50, p99": f"{tally.latency_ms['p50']:.1f} ms, {tally.latency_ms['p99']:.1f} ms",
        "latest": f"{1e3 * verdict['latest_s']:+.1f} ms from its deadline",
        "workers": f"{stats['deaths']} deaths, {stats['quarantines']} quarantines, "
        f"{stats['audits']} audits, {stats['corrupt']} convicted, {stats['reloads']} redeploys",
    }
    for name, value in rows.items():
        table.add_row(name, value)
    for promise, kept in verdict["kept"].items():
        table.add_row(promise, "kept" if kept else "[bold red]BROKEN[/]")
    return table
