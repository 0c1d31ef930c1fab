"""Processes and files around a server: forks, kills, what is left behind, pools of one's own."""

from __future__ import annotations

import fcntl
import gc
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from codedinv.errors import CodedInvError, WrongProcess
from codedinv.serving import CodedServer, Policy
from codedinv.serving.temporary import TemporaryFolder, is_temporary
from codedinv.workers import ThreadPool
from tests.serving.helpers import check_answers, wait_until
from tests.serving.linear_model import LinearModel
from tests.serving.scripted import ScriptedPool

Serve = Callable[..., CodedServer]
ROOT = Path(__file__).parents[2]


def in_a_fork(function: Callable[[], object]) -> str:
    """What a function returns, or raises, in a forked child."""
    read, write = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        try:
            said = repr(function())
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        os.write(write, said.encode())
        os._exit(0)
    os.close(write)
    os.waitpid(pid, 0)
    said = os.read(read, 65536).decode()
    os.close(read)
    return said


@pytest.mark.parametrize("use", ["submit", "predict", "stats", "reload"])
def test_a_forked_copy_is_refused_at_once(serve: Serve, linear: LinearModel, use: str) -> None:
    server = serve()
    query = linear.queries(1)[0]
    uses: dict[str, Callable[[], object]] = {
        "submit": lambda: server.submit(query),
        "predict": lambda: server.predict(query),
        "stats": lambda: server.stats(),
        "reload": lambda: server.reload(linear),
    }
    said = in_a_fork(uses[use])
    assert said.startswith(f"WrongProcess: this server belongs to process {os.getpid()}")
    assert issubclass(WrongProcess, CodedInvError)
    check_answers([server.submit(query).result(30)], linear.outputs(query[None]))


def test_a_forked_copy_cannot_close_its_parents_server(serve: Serve) -> None:
    model = LinearModel()  # never saved: its folder is a temporary one
    server = serve(model, policy=Policy(restart_backoff_s=0.01))
    temporary = server._deployed[0].temporary
    assert temporary is not None

    def leave() -> None:
        server.close()
        server.__exit__(None, None, None)
        temporary.remove()
        server.__del__()

    assert in_a_fork(leave) == "None"
    assert temporary.path.exists()
    server.pool.kill(0)  # the next one needs the folder
    wait_until(lambda: server.stats().restarts == 1)
    wait_until(lambda: set(server.stats().workers) <= {"ready", "busy"})
    check_answers(server.predict(model.queries(8)), model.outputs(model.queries(8)))


def test_a_forked_child_that_exits_leaves_the_parents_folder(tmp_path: Path) -> None:
    script = f"""
import os, sys
sys.path.insert(0, {str(ROOT)!r})
from codedinv.serving import CodedServer
from tests.serving.linear_model import LinearModel
model = LinearModel()
server = CodedServer(model, workers=2)
folder = server._deployed[0].temporary.path
pid = os.fork()
if pid == 0:
    sys.exit(0)
os.waitpid(pid, 0)
print(folder.exists())
server.close()
print(folder.exists())
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.split() == ["True", "False"], done.stderr


# ---- temporary folders


def test_a_temporary_folder_is_there_until_it_is_removed() -> None:
    folder = TemporaryFolder()
    assert folder.path.is_dir()
    assert is_temporary(folder.path / "bundle")
    assert not is_temporary(Path(tempfile.gettempdir()) / "bundle")
    folder.remove()
    assert not folder.path.exists()
    folder.remove()


def test_folders_of_the_dead_are_swept_and_those_of_the_living_are_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    mine = TemporaryFolder()
    living, dead = tmp_path / "codedinv-bundle-living", tmp_path / "codedinv-bundle-dead"
    for folder in (living, dead):
        folder.mkdir()
        (folder / "owner.lock").touch()
    foreign = tmp_path / "codedinv-bundle-without-a-lock"
    foreign.mkdir()
    with open(living / "owner.lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        another = TemporaryFolder()
    assert {p.name for p in tmp_path.iterdir()} == {
        mine.path.name,
        another.path.name,
        living.name,
        foreign.name,
    }


def test_what_sigterm_leaves_the_next_server_sweeps(tmp_path: Path) -> None:
    script = f"""
import sys, time
sys.path.insert(0, {str(ROOT)!r})
from codedinv.serving import CodedServer
from tests.serving.linear_model import LinearModel
server = CodedServer(LinearModel(), workers=1)
print("ready", flush=True)
if len(sys.argv) > 1:
    time.sleep(60)
server.close()
"""
    environment = os.environ | {"TMPDIR": str(tmp_path)}

    def folders() -> list[str]:
        return [p.name for p in tmp_path.iterdir() if p.name.startswith("codedinv-")]

    command = [sys.executable, "-c", script]
    first = subprocess.Popen([*command, "wait"], stdout=subprocess.PIPE, env=environment)
    assert first.stdout is not None
    assert first.stdout.readline() == b"ready\n"
    first.send_signal(signal.SIGTERM)
    first.wait()
    first.stdout.close()
    assert len(folders()) == 1
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
    assert folders() == []


def test_one_unsaved_model_serves_twice(serve: Serve, tmp_path: Path) -> None:
    """`save` may leave the first server's folder in the model; the second must not need it."""

    class Remembers(LinearModel):
        def save(self, folder: Path) -> None:
            super().save(folder)
            self.folder = folder

    model = Remembers()
    queries = model.queries(4)
    with CodedServer(model, workers=2):
        second = serve(model, workers=2, policy=Policy(restart_backoff_s=0.01))
    second.pool.kill(0)
    wait_until(lambda: second.stats().restarts == 1)
    wait_until(lambda: set(second.stats().workers) <= {"ready", "busy"})
    check_answers(second.predict(queries), model.outputs(queries))


# ---- the end, or none


def test_a_server_that_is_dropped_warns_and_takes_its_workers_with_it(linear: LinearModel) -> None:
    server = CodedServer(linear, workers=2)
    future = server.submit(linear.queries(1)[0])
    pids = [pid for pid in server.pool.pids() if pid]
    assert len(pids) == 2
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        del server
        gc.collect()
    assert any("dropped without close" in str(w.message) for w in warned)
    check_answers([future.result(30)], linear.outputs(linear.queries(1)))
    wait_until(lambda: not any(psutil.pid_exists(pid) for pid in pids))
    wait_until(lambda: not any(t.name == "codedinv-engine" for t in threading.enumerate()))


def test_a_server_that_is_closed_warns_of_nothing(linear: LinearModel) -> None:
    server = CodedServer(linear, backend="thread")
    server.close()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        del server
        gc.collect()


def test_nothing_is_left_of_a_server_that_could_not_start(tmp_path: Path) -> None:
    before = set(threading.enumerate())
    children = set(psutil.Process().children())  # of fixtures that outlive their tests
    model = LinearModel().saved(tmp_path / "bundle")
    (tmp_path / "bundle" / "backbone.onnx").write_bytes(b"not a network")
    with pytest.raises(CodedInvError, match="no worker could be started"):
        CodedServer(model, workers=2)
    wait_until(lambda: not set(threading.enumerate()) - before)
    wait_until(lambda: not set(psutil.Process().children()) - children)


def test_a_model_that_hangs_when_it_is_tried_out_is_told_within_start_timeout() -> None:
    forever = threading.Event()
    model = LinearModel()
    model.head = lambda z, task=None: forever.wait(60)  # type: ignore[method-assign, assignment, return-value]
    began = time.monotonic()
    with pytest.raises(CodedInvError, match=r"take longer than 0\.2 s"):
        CodedServer(model, backend="thread", policy=Policy(start_timeout_s=0.2))
    assert time.monotonic() - began < 20
    forever.set()


def test_workers_that_never_start_are_told_within_start_timeout(linear: LinearModel) -> None:
    class Silent(ScriptedPool):
        def start(self, worker: int, generation: int, version: int = 0) -> None:
            pass

        def poll(self, timeout_s: float | None) -> list[Any]:
            time.sleep(min(timeout_s or 0.0, 0.01))
            return []

    pool = Silent()
    with pytest.raises(CodedInvError, match="no worker could be started"):
        CodedServer(linear, workers=2, pool=pool, policy=Policy(start_timeout_s=0.2))
    assert pool.is_closed


# ---- pools


def test_a_pool_of_the_callers_is_used_and_closed(linear: LinearModel) -> None:
    class Counting(ThreadPool):
        sent = 0

        def provide(self, version: int, models: Any) -> None:
            super().provide(version, {"backbone": linear.embed})

        def send(self, *task: Any) -> None:
            Counting.sent += 1
            super().send(*task)

    pool = Counting({"backbone": linear.embed}, 4)
    pool.forget(0)
    queries = linear.queries(8)
    with CodedServer(linear, workers=3, pool=pool) as server:
        assert server.pool is pool
        check_answers(server.predict(queries), linear.outputs(queries))
        assert server.stats().workers == ("ready",) * 3 or len(server.stats().workers) == 3
    assert Counting.sent >= 8


@pytest.mark.parametrize(
    "options", [{"workers": 2, "backend": "thread"}, {}], ids=["a backend too", "no number"]
)
def test_a_pool_comes_with_its_number_of_workers_and_no_backend(
    linear: LinearModel, options: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match="pool: expected with `workers`"):
        CodedServer(linear, pool=ScriptedPool(), **options)
