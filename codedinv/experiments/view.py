"""What the demo shows while a run goes on: tiles on a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Protocol

from rich.align import Align
from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from codedinv.experiments.tally import LATE_S, QUANTILES, Tally

_LINE_EVERY_S = 2.0
_FRAMES_PER_S = 8
_KILLED_SHOWN_S = 1.5  # at least, or a quick restart would hide it
_STYLES = {
    "ready": "green", "busy": "green", "starting": "yellow", "dead": "red",
    "quarantined": "magenta", "vacant": "dim",
}  # fmt: skip
_TILE_WIDTH = 15


class _Stats(Protocol):
    @property
    def workers(self) -> tuple[str, ...]: ...


class LiveView:
    """Shows a tally while it grows; a context manager around the run.

    Args:
        label: of the run.
        count: queries that there will be.
        tally: of the answers so far.
        stats: of the server, for the workers' states.
        console: a terminal gets a live picture, which leaves one line when the run is over;
            anything else a line every two seconds.
    """

    def __init__(
        self,
        label: str,
        count: int,
        tally: Callable[[], Tally],
        stats: Callable[[], _Stats],
        console: Console,
    ) -> None:
        self._label = label
        self._count = count
        self._tally = tally
        self._stats = stats
        self._console = console
        self._tiles: dict[int, Tile] = {}
        self._start = time.monotonic()
        self._stop = threading.Event()
        self._lines = threading.Thread(target=self._print_lines, daemon=True)
        self._live = Live(
            console=console,
            get_renderable=self._picture,
            refresh_per_second=_FRAMES_PER_S,
            transient=True,
        )

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

    def event(self, worker: int, what: str) -> None:
        """Notes what was done to a worker."""
        self._tile(worker).struck(what, time.monotonic())
        if not self._console.is_terminal:
            self._print(f"{self._stamp()} worker {worker}: {what}")

    def _tile(self, worker: int) -> Tile:
        return self._tiles.setdefault(worker, Tile(worker))

    def _picture(self) -> Group:
        tally, now = self._tally(), time.monotonic()
        tiles = Table.grid(padding=(0, 1))
        states = self._stats().workers
        panels = [self._tile(w).panel(state, now) for w, state in enumerate(states)]
        per_row = max(1, self._console.width // (_TILE_WIDTH + 1))
        for first in range(0, len(panels), per_row):
            tiles.add_row(*panels[first : first + per_row])
        progress = Table.grid(padding=(0, 1))
        bar = ProgressBar(total=self._count, completed=tally.answered, width=30)
        seconds = f"{now - self._start:.0f} s"
        progress.add_row(Text(self._label, style="bold"), bar, Text(seconds))
        return Group(progress, Text(summary_of(tally)), tiles)

    def _print_lines(self) -> None:
        while not self._stop.wait(_LINE_EVERY_S):
            states = " ".join(self._stats().workers)
            self._print(f"{self._stamp()} {summary_of(self._tally())}; workers {states}")

    def _stamp(self) -> str:
        return f"[{self._label} {time.monotonic() - self._start:5.1f} s]"

    def _print(self, line: str) -> None:
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)


class Tile:
    """One worker on the screen: it turns red when it is killed, and green when it is back."""

    def __init__(self, worker: int) -> None:
        self._worker = worker
        self._mishap = ""
        self._struck_at = 0.0
        self._was_down = False
        self._back_after_s: float | None = None

    def struck(self, what: str, now: float) -> None:
        """Something was done to the worker."""
        self._mishap, self._struck_at = what, now
        self._was_down, self._back_after_s = False, None

    def panel(self, state: str, now: float) -> Panel:
        """The tile of a worker in that state."""
        style, lines = _STYLES.get(state, "white"), (state, self._mishap)
        if self._mishap == "SIGKILL":
            style, lines = self._killed(state, now)
        elif self._mishap:
            style = "bold black on yellow"
        text = Text("\n".join(lines), justify="center", style=style)
        return Panel(
            Align.center(text),
            title=f"worker {self._worker}",
            width=_TILE_WIDTH,
            padding=0,
            border_style=style,
            style=style if " on " in style else "",
        )

    def _killed(self, state: str, now: float) -> tuple[str, tuple[str, str]]:
        is_up = state in ("ready", "busy")
        since = now - self._struck_at
        self._was_down = self._was_down or not is_up
        if is_up and self._was_down and self._back_after_s is None:
            self._back_after_s = since
        if not is_up or since < _KILLED_SHOWN_S:
            return "bold white on red", ("SIGKILL", "gone" if is_up else state)
        after = "" if self._back_after_s is None else f"after {self._back_after_s:.1f} s"
        return "green", (f"{state} again", after)


def summary_of(tally: Tally) -> str:
    """One line about some answers."""
    sources = ", ".join(f"{count:,} {source}" for source, count in tally.by_source.items())
    parts = [
        f"{tally.answered:,} answered ({sources or 'none yet'})",
        f"{tally.lost} lost",
        f"{tally.late} late (> {1e3 * LATE_S:.0f} ms)",
        *(f"{name} {tally.latency_ms[name]:.1f} ms" for name in QUANTILES if tally.latency_ms),
    ]
    return ", ".join(parts)


def finite(value: Any) -> Any:
    """JSON values with None where a number is not finite, which JSON cannot say."""
    if isinstance(value, Mapping):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
