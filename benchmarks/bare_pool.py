"""What a front end is measured against: worker processes behind pipes, a future for each query, and
nothing else. No coding, deadlines, restarts, checks or counters.

A thread waits for all pipes and ends futures; `submit` sends to the least loaded worker, and what
finds no room waits in a queue. Bytes, not pickles, go over the pipes.
"""

from __future__ import annotations

import multiprocessing
import selectors
import threading
from collections import deque
from concurrent.futures import Future
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from codedinv.workers.backbone import load_backbone

Array = np.ndarray[Any, np.dtype[np.float32]]


class BarePool:
    """`workers` processes that run the backbone of a bundle's folder.

    Args:
        folder: holds backbone.onnx.
        shape: of a query and of an embedding.
        workers: how many.
        in_flight: queries that a worker has in hand at most.
    """

    def __init__(self, folder: Path, shape: tuple[int, ...], workers: int, in_flight: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._shape, self._in_flight = shape, in_flight
        self._pipes: list[Connection] = []
        self._processes = []
        for _ in range(workers):
            ours, theirs = context.Pipe()
            process = context.Process(target=serve, args=(theirs, folder, shape), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)
        for pipe in self._pipes:
            pipe.recv_bytes()  # it is ready
        self._held: list[deque[Future[Array]]] = [deque() for _ in self._pipes]
        self._waiting: deque[tuple[Future[Array], Array]] = deque()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._receive, daemon=True)
        self._thread.start()

    def submit(self, query: Array) -> Future[Array]:
        """Sends a query, which nobody may change any more."""
        future: Future[Array] = Future()
        with self._lock:
            worker = min(range(len(self._held)), key=self._load)
            if self._load(worker) < self._in_flight:
                self._send(worker, future, query)
            else:
                self._waiting.append((future, query))
        return future

    def close(self) -> None:
        """Ends the workers, and the thread with them."""
        for pipe in self._pipes:
            pipe.send_bytes(b"")
        self._thread.join()
        for process in self._processes:
            process.join()

    def _load(self, worker: int) -> int:
        return len(self._held[worker])

    def _send(self, worker: int, future: Future[Array], query: Array) -> None:
        self._held[worker].append(future)
        self._pipes[worker].send_bytes(query.data.cast("B"))

    def _receive(self) -> None:
        selector = selectors.DefaultSelector()
        for worker, pipe in enumerate(self._pipes):
            selector.register(pipe, selectors.EVENT_READ, worker)
        while selector.get_map():
            for key, _ in selector.select():
                try:
                    data = self._pipes[key.data].recv_bytes()
                except EOFError:
                    selector.unregister(key.fileobj)
                    continue
                with self._lock:
                    future = self._held[key.data].popleft()
                    if self._waiting:
                        self._send(key.data, *self._waiting.popleft())
                future.set_result(np.frombuffer(data, np.float32).reshape(self._shape))
        selector.close()


def serve(pipe: Connection, folder: Path, shape: tuple[int, ...]) -> None:
    """A worker: answers bytes by bytes until an empty message or the other end's end."""
    backbone = load_backbone(folder, "onnx")
    pipe.send_bytes(b"ready")
    while data := pipe.recv_bytes():
        result = backbone(np.frombuffer(data, np.float32).reshape(1, *shape))
        pipe.send_bytes(np.ascontiguousarray(result).data.cast("B"))
