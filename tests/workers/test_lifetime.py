"""How worker processes begin and end, and what happens to them and to the process above."""

from __future__ import annotations

import gc
import os
import select
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest

from codedinv.workers import BackboneSpec, Died, Message, ProcessPool, Ready, Result
from tests.serving.linear_model import LinearModel

Listen = Callable[..., list[Message]]
StartPool = Callable[..., ProcessPool]
ROOT = Path(__file__).parents[2]


# ---- starts


@pytest.mark.parametrize("executable", [None, ""])
def test_without_an_interpreter_a_start_fails_and_says_so(
    spec: BackboneSpec, listen: Listen, monkeypatch: pytest.MonkeyPatch, executable: str | None
) -> None:
    pool = ProcessPool(spec, 2)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", executable)
        pool.start(0, 1)
        (died,) = listen(pool, 1)
    assert isinstance(died, Died)
    assert "sys.executable is not set" in died.reason
    pool.start(0, 2)  # the next start is none the worse for it
    assert listen(pool, 1) == [Ready(0, 2)]
    pool.close(5.0)


def test_whatever_a_start_raises_is_told_and_the_next_one_goes_on(
    spec: BackboneSpec, listen: Listen, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = ProcessPool(spec, 1)
    for generation, error in enumerate((TypeError("no"), MemoryError(), SystemExit(3))):

        def popen(*args: object, error: BaseException = error, **kwargs: object) -> None:
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(subprocess, "Popen", popen)
            pool.start(0, generation)
            (died,) = listen(pool, 1)
        assert isinstance(died, Died)
        assert f"could not be started: {type(error).__name__}" in died.reason
    pool.start(0, 9)
    assert listen(pool, 1) == [Ready(0, 9)]
    pool.close(5.0)


@pytest.mark.parametrize("entry", [b"/nowhere", None, Path("/nowhere"), "/nowhere/\0x"])
def test_what_is_no_path_in_the_import_path_is_left_out(
    spec: BackboneSpec, listen: Listen, monkeypatch: pytest.MonkeyPatch, entry: object
) -> None:
    monkeypatch.setattr(sys, "path", [entry, *sys.path])
    pool = ProcessPool(spec, 1)
    pool.start(0, 1)
    assert listen(pool, 1) == [Ready(0, 1)]
    pool.close(5.0)


def test_a_restart_finds_the_same_files_after_a_change_of_directory(
    linear: LinearModel, listen: Listen, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert linear.folder is not None
    monkeypatch.setattr(sys, "path", ["", *(p for p in sys.path if p not in ("", str(ROOT)))])
    monkeypatch.chdir(ROOT)
    folder = os.path.relpath(linear.folder)
    spec = BackboneSpec.of(folder, linear.input_shape, linear.embedding_shape)
    pool = ProcessPool(spec, 1)
    monkeypatch.chdir(tmp_path)
    pool.start(0, 1)
    assert listen(pool, 1) == [Ready(0, 1)]
    pool.close(5.0)


# ---- ends


def test_a_retired_process_is_gone(
    start_pool: StartPool, linear: LinearModel, listen: Listen
) -> None:
    pool = start_pool()
    pids = pool.pids()
    pool.hang(0)
    pool.poll(0.0)
    pool.send(0, 1, 1, "backbone", linear.queries(1)[0])
    pool.retire(0, 1)
    wait_for_end(pids)
    assert pool.pids() == [None]


def test_close_leaves_no_process_thread_or_descriptor(spec: BackboneSpec, listen: Listen) -> None:
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    pool = ProcessPool(spec, 3)
    for worker in range(3):
        pool.start(worker, 1)
    listen(pool, 3)
    pids = pool.pids()
    pool.hang(1)
    pool.poll(0.0)
    pool.send(1, 1, 1, "backbone", np.zeros(spec.query_shape, np.float32))
    pool.pause(2)
    pool.close(0.5)
    wait_for_end(pids)
    assert not pool._starter._thread.is_alive()
    assert len(os.listdir("/proc/self/fd")) == before


def test_close_while_workers_start_leaves_none(spec: BackboneSpec) -> None:
    others = children_running_workers(psutil.Process())
    for delay_s in (0.0, 0.02):
        pool = ProcessPool(spec, 4)
        for worker in range(4):
            pool.start(worker, 1)
        time.sleep(delay_s)
        pool.close(0.1)
        assert children_running_workers(psutil.Process()) == others


def test_close_does_not_wait_for_a_start_that_hangs(
    spec: BackboneSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("codedinv.workers.process._STARTS_END_S", 0.2)
    real = subprocess.Popen
    begun, may_end, children = threading.Event(), threading.Event(), []

    def popen(*args: object, **kwargs: object) -> object:
        begun.set()
        may_end.wait()
        children.append(real(*args, **kwargs))  # type: ignore[call-overload]
        return children[0]

    monkeypatch.setattr(subprocess, "Popen", popen)
    pool = ProcessPool(spec, 1)
    pool.start(0, 1)
    begun.wait()
    pool.close(0.1)
    may_end.set()
    pool._starter._thread.join(100.0)
    assert not pool._starter._thread.is_alive()
    assert children[0].returncode is not None, "what was started too late was ended"


# ---- a parent that is stopped, interrupted, forked or killed

POOL = """
import os, sys, time
sys.path.insert(0, {root!r})
import numpy as np
from codedinv.workers import BackboneSpec, ProcessPool, Ready, Result
spec = BackboneSpec.of({folder!r}, {query!r}, {embedding!r})
pool = ProcessPool(spec, 3)
query = np.zeros(spec.query_shape, np.float32)
for worker in range(3):
    pool.start(worker, 1)

def listen(count):
    messages = []
    while len(messages) < count:
        messages += pool.poll(5.0)
    return messages
"""


def script(spec: BackboneSpec, body: str) -> str:
    """A program with a pool of three workers, just started."""
    pool = POOL.format(
        root=str(ROOT),
        folder=spec.folder,
        query=spec.query_shape,
        embedding=spec.embedding_shape,
    )
    return pool + textwrap.dedent(body)


def test_a_parent_that_was_stopped_while_it_waited_hears_what_came(spec: BackboneSpec) -> None:
    heard = []
    for stopped_s in (1.5, 6.0, 20.0):  # the first will do where processors are free
        heard.append(what_a_stopped_parent_hears(spec, stopped_s))
        if heard[-1] == "Result Result\n":
            return
    pytest.fail(f"it heard {heard}")


def what_a_stopped_parent_hears(spec: BackboneSpec, stopped_s: float) -> str:
    """What a `poll` of 1 s returns that was stopped for longer; results come after 0.5 s."""
    body = """
        listen(3)
        for worker in range(3):
            pool.slow(worker, 0.5)
        pool.poll(0.0)
        for worker in range(2):
            pool.send(worker, 1, 7, "backbone", query)
        print("sent", flush=True)
        print(*(type(m).__name__ for m in pool.poll(1.0)), flush=True)
        pool.close(5.0)
    """
    command = [sys.executable, "-c", script(spec, body)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "sent\n"
        time.sleep(0.1)
        parent.send_signal(signal.SIGSTOP)
        time.sleep(stopped_s)
        parent.send_signal(signal.SIGCONT)
        heard = parent.stdout.readline()
        assert parent.wait(60) == 0
        return heard


def test_ctrl_c_ends_no_worker_and_prints_nothing_of_theirs(spec: BackboneSpec) -> None:
    body = """
        import signal
        interrupts = []
        signal.signal(signal.SIGINT, lambda *_: interrupts.append(1))
        print("started", flush=True)
        kinds = {type(m) for m in listen(3)}
        print("ready", flush=True)
        for worker in range(3):
            pool.send(worker, 1, 7, "backbone", query)
        kinds |= {type(m) for m in listen(3)}
        print(kinds == {Ready, Result}, len(interrupts) > 0, flush=True)
        pool.close(5.0)
    """
    parent = subprocess.Popen(
        [sys.executable, "-c", script(spec, body)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "started\n"
        while not select.select([parent.stdout], [], [], 0.02)[0]:
            os.killpg(parent.pid, signal.SIGINT)  # while the interpreters of the workers start
        assert parent.stdout.readline() == "ready\n"
        assert parent.stderr is not None
        # Not `communicate`: it reads past what `readline` has in its buffer.
        out, error = parent.stdout.read(), parent.stderr.read()
    finally:
        parent.kill()
        parent.wait()
    assert (out, error) == ("True True\n", "")


def test_a_forked_copy_neither_ends_the_workers_nor_hides_their_deaths(
    start_pool: StartPool, linear: LinearModel, listen: Listen
) -> None:
    pool = start_pool(workers=2)
    pids = pool.pids()
    copy = os.fork()
    if copy == 0:
        pool.close(1.0)
        time.sleep(60)
        os._exit(0)
    try:
        time.sleep(0.2)
        assert pool.poll(0.0) == []
        pool.send(0, 1, 7, "backbone", linear.queries(1)[0])
        assert isinstance(listen(pool, 1)[0], Result)
        pool.kill(1)
        assert isinstance(listen(pool, 1)[0], Died)
        pool.close(1.0)
        wait_for_end(pids)
    finally:
        os.kill(copy, signal.SIGKILL)
        os.waitpid(copy, 0)


PARENT = """
import sys, time
sys.path.insert(0, {root!r})
from codedinv.serving import CodedServer, Policy
from tests.serving.linear_model import LinearModel
model = LinearModel()
server = CodedServer(model, workers=3, policy=Policy(hang_timeout_s=600))
server.pool.hang(1)
futures = [server.submit(q) for q in model.queries(30)]
time.sleep(0.3)
print(*server.pool.pids(), flush=True)
{then}
"""


def test_a_script_needs_no_main_guard_and_its_workers_end_with_it() -> None:
    pids = run_parent("sys.exit(0)")
    wait_for_end(pids)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_parent_leaves_no_orphan(number: signal.Signals) -> None:
    pids = run_parent("time.sleep(600)", number)
    wait_for_end(pids)


def run_parent(then: str, number: signal.Signals | None = None) -> list[int]:
    """Runs a script that serves with one worker hung; returns its workers' process ids."""
    script = PARENT.format(root=str(ROOT), then=then)
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    try:
        assert parent.stdout is not None
        pids = [int(word) for word in parent.stdout.readline().split() if word != "None"]
        assert len(pids) == 3
        if number is not None:
            parent.send_signal(number)
        parent.wait(60)
        return pids
    finally:
        parent.kill()
        parent.wait()
        if parent.stdout:
            parent.stdout.close()


def wait_for_end(pids: list[int | None] | list[int], timeout_s: float = 60.0) -> None:
    until = time.monotonic() + timeout_s
    while alive := [pid for pid in pids if pid and psutil.pid_exists(pid) and is_worker(pid)]:
        assert time.monotonic() < until, f"still alive: {alive}"
        time.sleep(0.02)


def is_worker(pid: int) -> bool:
    """Is it a worker that runs? (Not a zombie, which only waits to be looked at.)"""
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        return "codedinv.workers.child" in process.cmdline()
    except psutil.NoSuchProcess:
        return False


def children_running_workers(parent: psutil.Process) -> list[int]:
    return [child.pid for child in parent.children(recursive=True) if is_worker(child.pid)]
