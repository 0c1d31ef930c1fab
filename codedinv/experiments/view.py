"""What the demo shows: a live table on a terminal, lines at intervals elsewhere, a comparison."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table

from codedinv.experiments.tally import QUANTILES, Tally
from codedinv.experiments.traffic import Record

_LINE_EVERY_S = 2.0


class _Stats(Protocol):
    @property
    def workers(self) -> tuple[str, ...]: ...


class LiveView:
    """Shows a record while it fills; a context manager around the run.

    Args:
        label: of the run.
        record: filled by the traffic.
        labels: (N,) true classes by query number.
        stats: of the server, for the workers' states.
        console: a terminal gets a live table, anything else a line every two seconds.
    """

    def __init__(
        self,
        label: str,
        record: Record,
        labels: NDArray[np.int64],
        stats: Callable[[], _Stats],
        console: Console,
    ) -> None:
        self._label = label
        self._record = record
        self._labels = labels
        self._stats = stats
        self._console = console
        self._notes: dict[int, list[str]] = {}
        self._start = time.monotonic()
        self._stop = threading.Event()
        self._lines = threading.Thread(target=self._print_lines, daemon=True)
        self._live = Live(console=console, get_renderable=self._tables, refresh_per_second=4)

    def __enter__(self) -> LiveView:
        self._start = time.monotonic()
        if self._console.is_terminal:
            self._live.start()
        else:
            self._lines.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._console.is_terminal:
            self._live.stop()
        else:
            self._stop.set()
            self._lines.join()
            self._print(self._line())

    def event(self, worker: int, what: str) -> None:
        """Notes what was done to a worker."""
        self._notes.setdefault(worker, []).append(what)
        if not self._console.is_terminal:
            self._print(f"{self._stamp()} worker {worker}: {what}")

    def _tally(self) -> Tally:
        return Tally.of(self._record.answers(), self._labels)

    def _tables(self) -> Group:
        return Group(self._answers_table(), self._workers_table())

    def _answers_table(self) -> Table:
        tally = self._tally()
        table = Table(title=f"{self._label}, {time.monotonic() - self._start:.0f} s")
        for heading in ("answered", "exact", "reconstructed", "lost", *QUANTILES):
            table.add_column(heading, justify="right")
        table.add_row(
            f"{tally.answered:,} of {self._record.count:,}",
            *(_count(tally, source) for source in ("exact", "reconstructed")),
            str(tally.lost),
            *(_milliseconds(tally, name) for name in QUANTILES),
        )
        table.add_row(
            "accuracy", *(_accuracy(tally, source) for source in ("exact", "reconstructed"))
        )
        return table

    def _workers_table(self) -> Table:
        states = self._stats().workers
        table = Table()
        for heading in ("worker", *map(str, range(len(states)))):
            table.add_column(heading)
        table.add_row("state", *states)
        table.add_row("mishap", *(", ".join(self._notes.get(w, [])) for w in range(len(states))))
        return table

    def _print_lines(self) -> None:
        while not self._stop.wait(_LINE_EVERY_S):
            self._print(self._line())

    def _line(self) -> str:
        tally = self._tally()
        parts = [f"{self._stamp()} answered {tally.answered} of {self._record.sent} sent"]
        for source in ("exact", "reconstructed"):
            if source in tally.by_source:
                parts.append(f"{source} {_count(tally, source)} ({_accuracy(tally, source)} right)")
        parts.append(f"lost {tally.lost}")
        parts += [f"{name} {_milliseconds(tally, name)}" for name in QUANTILES]
        return ", ".join(parts) + "; workers " + " ".join(self._stats().workers)

    def _stamp(self) -> str:
        return f"[{self._label} {time.monotonic() - self._start:5.1f} s]"

    def _print(self, line: str) -> None:
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)


def comparison(tallies: Mapping[str, Tally], stats: Mapping[str, Mapping[str, Any]]) -> Table:
    """The runs side by side; tallies and the servers' statistics by the runs' labels."""
    table = Table(
        title="the same traffic, the same killed and slowed workers",
        caption="Latencies count from the scheduled arrival. Uncoded: as many workers; a query"
        " that dies with its worker is sent again, one at the slow worker waits for it.",
    )
    table.add_column("")
    for label in tallies:
        table.add_column(label, justify="right")

    def row(heading: str, cell: Callable[[str, Tally], str]) -> None:
        table.add_row(heading, *(cell(label, tally) for label, tally in tallies.items()))

    row("queries answered", lambda _, tally: f"{tally.answered:,} of {tally.sent:,}")
    row("queries lost", lambda _, tally: str(tally.lost))
    for source in ("exact", "reconstructed"):
        row(source, lambda _, tally, source=source: _count(tally, source))  # type: ignore[misc]
    row("sent again after a death", lambda label, _: str(stats[label]["retries"]))
    row("accuracy, all answers", lambda _, tally: _accuracy(tally, "all"))
    for source in ("exact", "reconstructed"):
        row(f"accuracy, {source}", lambda _, tally, source=source: _accuracy(tally, source))  # type: ignore[misc]
    for name in (*QUANTILES, "max"):
        row(f"latency {name}", lambda _, tally, name=name: _milliseconds(tally, name))  # type: ignore[misc]
    row("redundant work", _redundancy(stats))
    return table


def finite(value: Any) -> Any:
    """JSON values with None where a number is not finite, which JSON cannot say."""
    if isinstance(value, Mapping):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _redundancy(stats: Mapping[str, Mapping[str, Any]]) -> Callable[[str, Tally], str]:
    return lambda label, _: f"{stats[label]['parity_queries'] / stats[label]['accepted']:.0%}"


def _count(tally: Tally, source: str) -> str:
    return f"{tally.by_source.get(source, 0):,}"


def _accuracy(tally: Tally, source: str) -> str:
    return f"{tally.accuracy[source]:.1f} %" if source in tally.accuracy else "-"


def _milliseconds(tally: Tally, name: str) -> str:
    return f"{tally.latency_ms[name]:.1f} ms" if name in tally.latency_ms else "-"
