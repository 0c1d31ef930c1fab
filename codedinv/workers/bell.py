"""A bell that wakes the thread which waits for a pool: one byte in a socket, rung from anywhere."""

from __future__ import annotations

import contextlib
import socket


class Bell:
    """Readable (`fileno`) from a `ring` until the next `clear`; rings in between cost nothing."""

    def __init__(self) -> None:
        self._read, self._write = socket.socketpair()
        self._read.setblocking(False)
        self._write.setblocking(False)
        self._rung = False

    def fileno(self) -> int:
        return self._read.fileno()

    def ring(self) -> None:
        """For any thread; after `close` nobody hears it."""
        if not self._rung:
            self._rung = True
            with contextlib.suppress(OSError):  # full: it is readable anyway; closed: see above
                self._write.send(b"\0")

    def clear(self) -> None:
        """For the thread that waits; what the bell was rung for must be looked at after this."""
        with contextlib.suppress(BlockingIOError):
            self._read.recv(4096)
        # After reading, or the byte of a ring in between would be read with the flag left set, and
        # no later ring would write. What that ring is about is looked at after this.
        self._rung = False

    def close(self) -> None:
        self._read.close()
        self._write.close()
