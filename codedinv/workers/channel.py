"""The wire between a pool and a worker process: whole messages over a local socket, large arrays
through memory that both have mapped.

A SOCK_SEQPACKET socket pair is a duplex pipe that keeps message boundaries: one system call sends
or receives a message, nothing is pickled, and the other end's death is an end of file.
"""

from __future__ import annotations

import enum
import mmap
import os
import socket
import struct
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from codedinv.workers.backbone import Array

MOST_SLOTS = 128
_INLINE_BYTES = 64 * 1024  # a larger array is copied faster through shared memory
_TEXT_LIMIT = 8 * 1024
_HEADER = struct.Struct("<BBHHIQ")  # kind, is shared, memory slot, model, bytes inline, task


class Kind(enum.IntEnum):
    """Messages: to a worker TASK, CANCEL and FAULTS, from a worker the others."""

    TASK = 1
    CANCEL = 2
    FAULTS = 3
    READY = 4
    RESULT = 5
    ERROR = 6
    DROPPED = 7
    FATAL = 8


_KINDS = {int(kind): kind for kind in Kind}
_WITH_ARRAY = (Kind.TASK, Kind.RESULT)


@dataclass(frozen=True)
class Layout:
    """Sizes that both ends agree on.

    Attributes:
        query_shapes: of each model's queries, in their order; float32.
        embedding_shape: of every model's results; float32.
        slots: tasks in the worker's hands at a time, and places for their arrays in shared memory.
            `MOST_SLOTS` at most: the others wait at the pool, where it costs nothing to cancel
            them, and a socket's buffer (Linux: 208 KiB) holds all that were sent with room to
            spare for messages that overtake them.
    """

    query_shapes: tuple[tuple[int, ...], ...]
    embedding_shape: tuple[int, ...]
    slots: int

    @property
    def query_bytes(self) -> int:
        """Of the largest."""
        return 4 * max(int(np.prod(shape)) for shape in self.query_shapes)

    @property
    def embedding_bytes(self) -> int:
        return 4 * int(np.prod(self.embedding_shape))

    def is_shared(self, nbytes: int) -> bool:
        """Do arrays of this size go through shared memory?"""
        return nbytes > _INLINE_BYTES // self.slots

    @property
    def memory_bytes(self) -> int:
        """Shared memory needed; 0: none."""
        if self.is_shared(self.query_bytes) or self.is_shared(self.embedding_bytes):
            return self.slots * (self.query_bytes + self.embedding_bytes)
        return 0


def create_memory(nbytes: int) -> int:
    """A file descriptor of anonymous shared memory: without a name there is nothing to leak, it
    goes with the last process that has it, however that ends."""
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("codedinv", os.MFD_CLOEXEC)
    else:
        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
    os.ftruncate(fd, nbytes)
    return fd


def _make_room(sock: socket.socket, nbytes: int) -> None:
    """Lets a socket send messages of this size at once: a system may have been told to give it less
    (Linux: net.core.wmem_default), and one that is too long would look like the other end's death.
    """
    if sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) < 2 * nbytes:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, nbytes)  # Linux doubles it


class Parcel(NamedTuple):
    """An array to be sent: for which task and model, and its place in shared memory."""

    task: int
    slot: int
    model: int
    array: Array


class Received(NamedTuple):
    """What came: a whole message, or one array of several. `array` is the receiver's own copy, but
    for a large query: that is read in place by the worker, whose it is until it has ended the task.
    """

    kind: Kind
    task: int
    slot: int
    model: int
    array: Array | None = None
    text: str = ""


class Channel:
    """One end of the wire.

    Args:
        sock: a connected SOCK_SEQPACKET socket; the channel owns it.
        memory_fd: of the shared memory, None if `layout` needs none; mapped here, not closed.
        layout: the sizes.
        is_worker: which end this is: a worker receives queries and sends embeddings.
    """

    def __init__(
        self, sock: socket.socket, memory_fd: int | None, layout: Layout, is_worker: bool
    ) -> None:
        self.sock = sock
        self._layout = layout
        self._memory = mmap.mmap(memory_fd, layout.memory_bytes) if memory_fd is not None else None
        self._receives_query = is_worker
        self._buffer = bytearray(_HEADER.size * MOST_SLOTS + _INLINE_BYTES)
        self._view = memoryview(self._buffer)
        _make_room(sock, len(self._buffer))
        shapes = layout.query_shapes
        self._shapes = shapes if is_worker else (layout.embedding_shape,) * len(shapes)
        self._nbytes = [4 * int(np.prod(shape)) for shape in self._shapes]
        self._first: dict[int, Array] = {}  # by model: the first array of a message, in place

    def send_arrays(self, kind: Kind, parcels: Sequence[Parcel]) -> None:
        """Sends arrays in one message, which takes hardly longer than one of them: a worker
        embeddings, else queries.

        Args:
            kind: of all of them.
            parcels: as many as there are slots, at most.

        Raises:
            OSError: the other end is gone, or (non-blocking) does not read; nothing was sent.
        """
        parts: list[Any] = []  # bytes-like
        for task, slot, model, array in parcels:
            nbytes = array.nbytes
            if self._memory is not None and self._layout.is_shared(nbytes):
                is_query = not self._receives_query
                self._shared(slot, is_query, self._shape(is_query, model))[...] = array
                parts.append(_HEADER.pack(kind, 1, slot, model, 0, task))
            else:
                parts.append(_HEADER.pack(kind, 0, slot, model, nbytes, task))
                parts.append(np.ascontiguousarray(array))
        self.sock.sendmsg(parts)

    def send_text(self, kind: Kind, text: str = "", task: int = 0, slot: int = 0) -> None:
        """Sends a message without array; the text is cut at 8 KiB.

        Raises:
            OSError: as `send_arrays`.
        """
        data = text.encode(errors="replace")[:_TEXT_LIMIT]
        self.sock.send(_HEADER.pack(kind, 0, slot, 0, len(data), task) + data)

    def receive(self, wait: bool) -> list[Received] | None:
        """Takes one message; None at the end of file.

        Raises:
            BlockingIOError: there is nothing, and `wait` is false.
            OSError: the connection is broken.
        """
        try:
            size = self._take(wait)
        except ConnectionResetError:
            # The other end died with unread messages. That is told once, and before what it sent.
            size = self._take(wait)
        if size == 0:
            return None
        found, at = [], 0
        while at < size:
            number, shared, slot, model, nbytes, task = _HEADER.unpack_from(self._buffer, at)
            kind, at = _KINDS[number], at + _HEADER.size
            if kind in _WITH_ARRAY:
                array = self._array(at, slot, model, nbytes, shared)
                found.append(Received(kind, task, slot, model, array))
            else:
                text = bytes(self._view[at : at + nbytes]).decode(errors="replace")
                found.append(Received(kind, task, slot, model, None, text))
            at += nbytes
        return found

    def close(self) -> None:
        """Closes the socket and unmaps the memory."""
        self.sock.close()
        if self._memory is not None:
            self._memory.close()

    def _take(self, wait: bool) -> int:
        return self.sock.recv_into(self._buffer, 0, 0 if wait else socket.MSG_DONTWAIT)

    def _array(self, at: int, slot: int, model: int, nbytes: int, shared: int) -> Array:
        """The array of a task or result, whose bytes are in the buffer from `at` if not shared."""
        shape = self._shapes[model]
        if shared:
            array = self._shared(slot, self._receives_query, shape)
            return array if self._receives_query else array.copy()
        if nbytes != self._nbytes[model]:
            raise ValueError(f"a message has {nbytes} bytes for an array of {shape}")
        if at != _HEADER.size:
            return np.ndarray(shape, np.float32, self._buffer, at).copy()
        first = self._first.get(model)
        if first is None:
            first = self._first[model] = np.ndarray(shape, np.float32, self._buffer, at)
        return first.copy()

    def _shape(self, is_query: bool, model: int) -> tuple[int, ...]:
        layout = self._layout
        return layout.query_shapes[model] if is_query else layout.embedding_shape

    def _shared(self, slot: int, is_query: bool, shape: tuple[int, ...]) -> Array:
        layout = self._layout
        offset = slot * (layout.query_bytes + layout.embedding_bytes)
        if not is_query:
            offset += layout.query_bytes
        if self._memory is None:
            raise OSError("a message refers to shared memory that this channel does not have")
        count = int(np.prod(shape))
        return np.frombuffer(self._memory, np.float32, count, offset).reshape(shape)
