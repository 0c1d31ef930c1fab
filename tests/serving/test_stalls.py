"""The front end itself is stopped, as `docker pause` and debuggers do it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = f"""
import json, sys, tempfile, time
from collections import Counter
from pathlib import Path
sys.path.insert(0, {str(ROOT)!r})
from codedinv.serving import CodedServer, Policy
from tests.serving.linear_model import LinearModel

model = LinearModel().saved(Path(tempfile.mkdtemp()) / "bundle")
policy = Policy(hang_timeout_s=0.5, release="grace", grace_s=60.0)
with CodedServer(model, policy=policy) as server:
    for worker in range(5):
        server.pool.slow(worker, 0.4)
    ends = Counter()
    for line in sys.stdin:  # a round for every line
        while set(server.stats().workers) != {{"ready"}}:  # parities of the round before
            time.sleep(0.01)
        futures = [server.submit(q, deadline=1.0) for q in model.queries(5)]
        while server.stats().queued:
            time.sleep(0.001)
        print("sent", flush=True)
        for future in futures:
            error = future.exception()
            ends[type(error).__name__ if error else future.result().source] += 1
        print("ended", flush=True)
    stats = server.stats()
    print(json.dumps({{"ends": ends, "hangs": stats.hangs, "deaths": stats.deaths}}), flush=True)
"""


@pytest.mark.parametrize("whom", ["front end", "all"])
def test_a_stop_beyond_every_limit_kills_nobody_and_loses_no_result(
    tmp_path: Path, whom: str
) -> None:
    """Stopped beyond hang_timeout_s and the deadline, with results waiting in the sockets."""
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"TMPDIR": str(tmp_path)},
        start_new_session=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    stop = os.kill if whom == "front end" else os.killpg
    try:
        for _ in range(3):
            print("go", file=process.stdin, flush=True)
            assert process.stdout.readline() == "sent\n"
            time.sleep(0.05)
            stop(process.pid, signal.SIGSTOP)
            time.sleep(1.5)
            stop(process.pid, signal.SIGCONT)
            assert process.stdout.readline() == "ended\n"
        process.stdin.close()
        told = json.loads(process.stdout.readline())
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
    assert told["hangs"] == told["deaths"] == 0
    if whom == "front end":  # the workers went on, so their results were there
        assert told["ends"] == {"exact": 15}
