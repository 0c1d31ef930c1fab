"""One worker process, and the wire to it, as its pool sees them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import astuple, dataclass, field

from codedinv.errors import CodedInvError
from codedinv.workers.backbone import BackboneSpec
from codedinv.workers.batches import ONE_BY_ONE, Batching
from codedinv.workers.channel import Channel, Layout, create_memory
from codedinv.workers.devices import CPU
from codedinv.workers.faults import Faults
from codedinv.workers.outbox import Outbox

_ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"),
    "1",  # the workers are the parallelism
)


@dataclass(frozen=True)
class Version:
    """What the workers of a version run.

    Attributes:
        specs: by the model's name; a task names its model by the position here.
        layout: the shape of each model's queries, and of all their embeddings.
        indices: position by name.
    """

    specs: Mapping[str, BackboneSpec]
    layout: Layout
    indices: Mapping[str, int] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "indices", {name: i for i, name in enumerate(self.specs)})

    @classmethod
    def of(cls, specs: Mapping[str, BackboneSpec], slots: int) -> Version:
        """Checks that all models give the same embeddings.

        Raises:
            ValueError: they do not, or there are none.
        """
        if not specs:
            raise ValueError("models: expected at least one")
        shapes = {name: spec.embedding_shape for name, spec in specs.items()}
        if len(set(shapes.values())) > 1:
            raise ValueError(f"models: expected embeddings of one shape, got {shapes}")
        queries = tuple(spec.query_shape for spec in specs.values())
        return cls(dict(specs), Layout(queries, next(iter(shapes.values())), slots))


@dataclass(frozen=True)
class Launch:
    """An order to start a worker.

    Attributes:
        index, generation: which.
        version: what it runs.
        import_path: PYTHONPATH.
        batching: how it makes batches.
        device: where it runs.
    """

    index: int
    generation: int
    version: Version
    import_path: str
    batching: Batching = ONE_BY_ONE
    device: str = CPU


class WorkerProcess:
    """One generation of one worker.

    Each is `python -m codedinv.workers.child`, started by subprocess rather than multiprocessing:
    the caller's main module is not imported again (a script needs no `__main__` guard), no resource
    tracker or fork server runs beside it, and nothing is forked after ONNX Runtime or torch have
    started threads.

    Raises:
        CodedInvError: Python does not know its own interpreter.
        OSError: no memory, no descriptors, no processes left.
    """

    def __init__(self, launch: Launch) -> None:
        if not sys.executable:
            raise CodedInvError(
                "sys.executable is not set, so there is no interpreter to run workers with; a "
                'program that embeds Python must set it, or use backend="thread"'
            )
        self.index = launch.index
        self.generation = launch.generation
        self.models = launch.version.indices
        self.faults = Faults()
        self.fatal = ""
        self.is_full = False  # what waits in the outbox has no room in the socket
        layout = launch.version.layout
        memory_fd = create_memory(layout.memory_bytes) if layout.memory_bytes else None
        try:
            self.channel, self.process = _connect(launch, memory_fd)
        finally:
            if memory_fd is not None:
                os.close(memory_fd)
        self.outbox = Outbox(self.channel, layout)
        self.pidfd = _open_pidfd(self.process.pid)

    def epitaph(self) -> str:
        """Why it died, as far as known."""
        if self.fatal:
            return self.fatal
        code = self.process.poll()
        if code is None:
            return "ended"  # its socket did; the exit status comes milliseconds later
        if code >= 0:
            return f"ended with code {code}"
        try:
            return f"ended by {signal.Signals(-code).name}"
        except ValueError:  # a real-time signal has no name
            return f"ended by signal {-code}"

    def destroy(self) -> None:
        """Kills the process and lets go of everything but the process itself."""
        self.process.kill()
        self.channel.close()
        if self.pidfd is not None:
            os.close(self.pidfd)


def import_path() -> str:
    """This process's import path, so that a worker imports the same modules.

    What cannot be a path for another process (bytes, None, a NUL, a relative entry in a working
    directory that is gone) is left out; the import system skips such entries too.
    """
    entries: list[str] = []
    for entry in sys.path:
        if isinstance(entry, str) and "\0" not in entry:
            with contextlib.suppress(OSError):
                entries.append(os.path.abspath(entry))
    return os.pathsep.join(entries)


def _connect(launch: Launch, memory_fd: int | None) -> tuple[Channel, subprocess.Popen[bytes]]:
    """Starts the process at the other end of a new channel."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        ours.setblocking(False)
        channel = Channel(ours, memory_fd, launch.version.layout, is_worker=False)
        return channel, _run_child(launch, theirs.fileno(), memory_fd)
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()  # a copy left open here would hide the worker's end of file


def _run_child(launch: Launch, fd: int, memory_fd: int | None) -> subprocess.Popen[bytes]:
    config = {
        "fd": fd,
        "memory_fd": memory_fd,
        "slots": launch.version.layout.slots,
        "batching": astuple(launch.batching),
        "device": launch.device,
        "parent": os.getpid(),
        "specs": {name: spec.to_json() for name, spec in launch.version.specs.items()},
    }
    return subprocess.Popen(
        # -P: only the parent's own import path, whatever the working directory holds.
        [sys.executable, "-P", "-m", "codedinv.workers.child", json.dumps(config)],
        stdin=subprocess.DEVNULL,
        pass_fds=[number for number in (fd, memory_fd) if number is not None],
        env=os.environ | _ONE_THREAD | {"PYTHONPATH": launch.import_path},
    )


def _open_pidfd(pid: int) -> int | None:
    """A descriptor that is readable when the process ends; None where the system has none."""
    if not hasattr(os, "pidfd_open"):
        return None
    try:
        return os.pidfd_open(pid)
    except OSError:  # an old kernel, or a sandbox; the end of file has to do
        return None
