"""The thread that starts worker processes."""

from __future__ import annotations

import queue
import signal
import threading
from collections.abc import Callable

from codedinv.workers.worker_process import Launch, WorkerProcess


class Starter:
    """Starts worker processes one after the other, and outlives them all.

    A worker dies with the thread that started it (PR_SET_PDEATHSIG), and a start takes milliseconds
    that the pool's owner does not have. Whatever goes wrong with a start is told, and the next one
    goes on.

    Args:
        started: takes a new process, in this thread.
        failed: takes index, generation and reason of one that could not be started, likewise.
    """

    def __init__(
        self,
        started: Callable[[WorkerProcess], None],
        failed: Callable[[int, int, str], None],
    ) -> None:
        self._started = started
        self._failed = failed
        self._jobs: queue.SimpleQueue[Launch | None] = queue.SimpleQueue()
        self._stopping = False
        self._stopped = threading.Event()
        self._workers_ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="codedinv-starter", daemon=True)
        self._thread.start()

    def start(self, launch: Launch) -> None:
        """Orders a start; returns at once."""
        self._jobs.put(launch)

    def stop(self, timeout_s: float) -> None:
        """Waits until no more processes will be handed to `started`, for so long at most."""
        self._stopping = True
        self._jobs.put(None)
        self._stopped.wait(timeout_s)

    def end(self, timeout_s: float) -> None:
        """Ends the thread, for no worker needs it any more."""
        self._workers_ended.set()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        # Inherited by the workers: Ctrl-C reaches every process of the terminal, and would end them
        # with a traceback each before they have come to ignore it.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        while (launch := self._jobs.get()) is not None:
            if not self._stopping:
                self._start(launch)
        self._stopped.set()
        self._workers_ended.wait()

    def _start(self, launch: Launch) -> None:
        try:
            worker = WorkerProcess(launch)
        except BaseException as error:  # whatever it is, this thread must live and somebody know
            reason = f"could not be started: {type(error).__name__}: {error}"
            self._failed(launch.index, launch.generation, reason)
            return
        if self._stopping:  # nobody will look at what `started` takes
            worker.destroy()
            worker.process.wait()
        else:
            self._started(worker)
