"""How a gateway starts, is told to change, and ends, with traffic all along."""

from __future__ import annotations

import datetime
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from codedinv.oip import InferRequest, Tensor, grpc_codec
from codedinv.oip.messages import Stub, message
from tests.certificates import Authority
from tests.gateway.conftest import BUNDLE
from tests.gateway.servers import (
    ROOT,
    Gateway,
    copy_bundle,
    get,
    infer_body,
    rename_task,
    running_gateway,
    start_gateway,
    wait_until,
)

X = np.random.default_rng(0).random((2, 1, 28, 28), np.float32)
ONE_WORKER = {"models": [{"model": BUNDLE, "workers": 1}]}


class Traffic:
    """Requests one after another from several threads, and what became of them."""

    def __init__(self, gateway: Gateway, threads: int = 3, model: str = BUNDLE) -> None:
        self._url = f"{gateway.url}/v2/models/{model}/infer"
        self._over = threading.Event()
        self.statuses: list[int] = []
        self.answers: list[dict[str, Any]] = []
        self.errors: list[str] = []
        self._threads = [threading.Thread(target=self._ask) for _ in range(threads)]

    def _ask(self) -> None:
        with httpx.Client(timeout=60) as client:
            while not self._over.is_set():
                try:
                    answer = client.post(self._url, json=infer_body(X))
                    self.statuses.append(answer.status_code)
                    self.answers.append(answer.json())
                except httpx.HTTPError as error:
                    self.errors.append(repr(error))
                    return

    def __enter__(self) -> Traffic:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()


def infer(gateway: Gateway, model: str = BUNDLE) -> httpx.Response:
    return httpx.post(f"{gateway.url}/v2/models/{model}/infer", json=infer_body(X), timeout=60)


def test_the_ready_line_says_where_and_what(gateway: Gateway) -> None:
    assert set(gateway.ready) == {"http", "grpc", "tls", "models"}
    for address in (gateway.ready["http"], gateway.ready["grpc"]):
        host, port = address.split(":")
        assert host == "127.0.0.1"
        assert int(port) > 0
    assert list(gateway.ready["models"]) == [BUNDLE]


@pytest.mark.slow
def test_it_is_live_but_not_ready_until_its_models_are(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process, _ = start_gateway(tmp_path, ONE_WORKER | {"http_port": port, "grpc_port": None})
    url = f"http://127.0.0.1:{port}/v2"
    try:
        seen = set()
        while (200, 200) not in seen:
            assert process.poll() is None
            try:
                live = httpx.get(f"{url}/health/live", timeout=30).status_code
                seen.add((live, httpx.get(f"{url}/health/ready", timeout=30).status_code))
            except httpx.ConnectError:
                time.sleep(0.01)
        assert seen == {(200, 503), (200, 200)}
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        assert ready["http"] == f"127.0.0.1:{port}"
        assert "grpc" not in ready
    finally:
        process.terminate()
        assert process.wait(60) == 0
        process.stdout.close()


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_a_signal_drains_and_ends_with_0(tmp_path: Path, number: int) -> None:
    slow = {"release": "deadline", "deadline_s": 2.0}
    models = [{"model": BUNDLE, "workers": 2, "policy": slow}]
    with running_gateway(tmp_path, {"models": models, "drain_delay_s": 0.3}) as running:
        for pid in worker_pids(running):
            os.kill(pid, signal.SIGSTOP)  # so that the answers are those of the last moment
        found: list[Any] = []
        asking = [threading.Thread(target=lambda: found.append(infer(running))) for _ in range(4)]
        for thread in asking:
            thread.start()
        wait_until(lambda: in_progress(running) == 4)
        running.process.send_signal(number)
        wait_until(lambda: get(running, "/v2/health/ready").status_code == 503)
        assert get(running, "/v2/health/live").headers["connection"] == "close"
        with grpc.insecure_channel(running.ready["grpc"]) as channel:
            assert not Stub(channel).ServerReady(message("ServerReadyRequest")()).ready
        for thread in asking:
            thread.join()
        assert [answer.status_code for answer in found] == [200] * 4
        assert running.process.wait(60) == 0
        assert [line["message"] for line in running.lines()][-1] == "ended"


@pytest.mark.slow
def test_calls_in_progress_over_grpc_are_answered_too(tmp_path: Path) -> None:
    slow = {"release": "deadline", "deadline_s": 2.0}
    models = [{"model": BUNDLE, "workers": 2, "policy": slow}]
    with running_gateway(tmp_path, {"models": models}) as running:
        for pid in worker_pids(running):
            os.kill(pid, signal.SIGSTOP)
        with grpc.insecure_channel(running.ready["grpc"]) as channel:
            request = grpc_codec.encode_request(BUNDLE, InferRequest([Tensor("query", X)]))
            calls = [Stub(channel).ModelInfer.future(request, timeout=60) for _ in range(4)]
            wait_until(lambda: in_progress(running) == 4)
            running.process.send_signal(signal.SIGTERM)
            answers = [call.result() for call in calls]
        for answer in answers:  # the client's 60 s do not lengthen the policy's 2 s
            assert answer.parameters["source"].string_param == "fallback,fallback"
            assert answer.parameters["latency"].double_param < 2.0
        assert running.process.wait(60) == 0


def test_who_watches_the_health_over_grpc_hears_the_truth_and_delays_no_end(tmp_path: Path) -> None:
    states = health_pb2.HealthCheckResponse.ServingStatus
    settings = ONE_WORKER | {"max_requests": 2, "drain_timeout_s": 600.0}
    with (
        running_gateway(tmp_path, settings) as running,
        grpc.insecure_channel(running.ready["grpc"]) as channel,
    ):
        health, stub = health_pb2_grpc.HealthStub(channel), Stub(channel)
        request = health_pb2.HealthCheckRequest()
        watches = [health.Watch(request) for _ in range(4)]
        assert {next(watch).status for watch in watches} == {states.SERVING}
        watches.pop().cancel()  # one that goes takes nobody else's news with it
        call = grpc_codec.encode_request(BUNDLE, InferRequest([Tensor("query", X)]))
        assert stub.ModelInfer(call, timeout=60).outputs  # watches are no requests in progress
        stub.RepositoryModelUnload(message("RepositoryModelUnloadRequest")(model_name=BUNDLE))
        assert {next(watch).status for watch in watches} == {states.NOT_SERVING}
        assert health.Check(request).status == states.NOT_SERVING
        assert running.stop() == 0  # and not after the 600 s
        assert [list(watch) for watch in watches] == [[]] * 3


def test_more_calls_than_it_takes_are_told_so_and_health_is_answered_still(tmp_path: Path) -> None:
    models = [{"model": BUNDLE, "workers": 1, "policy": {"release": "deadline"}}]
    with (
        running_gateway(tmp_path, {"models": models, "max_requests": 2}) as running,
        grpc.insecure_channel(running.ready["grpc"]) as channel,
    ):
        os.kill(worker_pids(running)[0], signal.SIGSTOP)
        stub = Stub(channel)
        request = InferRequest([Tensor("query", X)], parameters={"timeout": 5_000_000})
        call = grpc_codec.encode_request(BUNDLE, request)
        calls = [stub.ModelInfer.future(call, timeout=60) for _ in range(2)]
        wait_until(lambda: in_progress(running) == 2)
        with pytest.raises(grpc.RpcError) as refused:
            stub.ModelInfer(call, timeout=60)
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        assert stub.ServerReady(message("ServerReadyRequest")(), timeout=60).ready
        for answer in calls:
            assert answer.result().outputs


@pytest.mark.slow
def test_traffic_that_meets_the_end_is_answered_or_not_taken(tmp_path: Path) -> None:
    settings = ONE_WORKER | {"drain_delay_s": 0.5, "access_log": True}
    with running_gateway(tmp_path, settings) as running:
        with Traffic(running) as traffic:
            wait_until(lambda: len(traffic.statuses) > 20)
            assert running.stop() == 0
        assert set(traffic.statuses) == {200}
        # A connection that the kernel took and the gateway did not is reset.
        assert all("ConnectError" in error or "reset" in error for error in traffic.errors)
        taken = [line for line in running.lines() if line.get("path", "").endswith("/infer")]
        assert len(taken) == len(traffic.statuses)


@pytest.mark.parametrize(
    "how",
    ["http", *(pytest.param(how, marks=pytest.mark.slow) for how in ("signal", "grpc"))],
)
def test_a_reload_loses_no_query(tmp_path: Path, how: str) -> None:
    folder = copy_bundle("fashion-mnist-k2", tmp_path / "bundle")
    models = [{"model": str(folder), "name": "fashion", "workers": 2}]
    with running_gateway(tmp_path / "gateway", {"models": models}) as running:
        before = running.ready["models"]["fashion"]
        with Traffic(running, 2, "fashion") as traffic:
            wait_until(lambda: len(traffic.statuses) > 5)
            copy_bundle(BUNDLE, folder)
            if how == "signal":
                running.process.send_signal(signal.SIGHUP)
            elif how == "http":
                path = f"{running.url}/v2/repository/models/fashion/load"
                assert httpx.post(path, timeout=60).status_code == 200
            else:
                triton_grpc.InferenceServerClient(running.ready["grpc"]).load_model("fashion")
            wait_until(lambda: version(running) != before)
            so_far = len(traffic.statuses)
            wait_until(lambda: len(traffic.statuses) > so_far + 5)
        assert set(traffic.statuses) == {200}
        assert traffic.errors == []


def test_queries_are_answered_by_the_model_that_they_were_asked_of(tmp_path: Path) -> None:
    """Though the next one has other tasks."""
    folder = copy_bundle(BUNDLE, tmp_path / "bundle")
    models = [{"model": str(folder), "name": "fashion", "workers": 2}]
    with running_gateway(tmp_path / "gateway", {"models": models}) as running:
        before = running.ready["models"]["fashion"]
        with Traffic(running, 2, "fashion") as traffic:
            wait_until(lambda: len(traffic.answers) > 5)
            rename_task(folder, "label", "garment")
            path = f"{running.url}/v2/repository/models/fashion/load"
            assert httpx.post(path, timeout=60).status_code == 200
            so_far = len(traffic.answers)
            wait_until(lambda: len(traffic.answers) > so_far + 5)
        after = version(running)
        assert set(traffic.statuses) == {200}
        assert traffic.errors == []
        tasks = {(a["model_version"], *(o["name"] for o in a["outputs"])) for a in traffic.answers}
        assert tasks == {(before, "label"), (after, "garment")}
        assert get(running, "/v2/models/fashion").json()["outputs"][0]["name"] == "garment"


def test_statistics_agree_on_how_many_were_asked(tmp_path: Path) -> None:
    """Also after the model has come again: what the gateway asks itself to warm up is no query."""
    with running_gateway(tmp_path, ONE_WORKER) as running:

        def counts() -> tuple[int, int]:
            (found,) = get(running, f"/v2/models/{BUNDLE}/stats").json()["model_stats"]
            return found["inference_stats"]["queue"]["count"], found["inference_count"]

        assert counts() == (0, 0)
        infer(running)
        assert counts() == (2, 2)
        for what in ("unload", "load"):
            path = f"{running.url}/v2/repository/models/{BUNDLE}/{what}"
            assert httpx.post(path, timeout=60).status_code == 200
            assert counts() == (2, 2)
        infer(running)
        assert counts() == (4, 4)


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_curl_of_the_documentation_works_as_typed(gateway: Gateway) -> None:
    text = (ROOT / "docs" / "gateway.md").read_text()
    (command,) = re.findall(r"```bash\n(curl .*?)```", text, re.DOTALL)
    typed = command.replace("http://127.0.0.1:8000", gateway.url)
    said = subprocess.run(["sh", "-c", typed], capture_output=True, text=True, check=True).stdout
    answer = json.loads(said)
    assert answer["parameters"]["source"] == "exact"
    assert answer["outputs"][0]["shape"] == [1, 10]


def test_a_signal_does_not_load_what_was_unloaded(tmp_path: Path) -> None:
    models = [{"model": BUNDLE, "workers": 1}, {"model": BUNDLE, "name": "b", "workers": 1}]
    with running_gateway(tmp_path, {"models": models}) as running:
        unload = f"{running.url}/v2/repository/models/b/unload"
        assert httpx.post(unload, timeout=60).status_code == 200
        running.process.send_signal(signal.SIGHUP)
        wait_until(lambda: "reloaded" in [line["message"] for line in running.lines()])
        assert infer(running, "b").status_code == 503
        load = f"{running.url}/v2/repository/models/b/load"
        assert httpx.post(load, timeout=60).status_code == 200
        assert infer(running, "b").status_code == 200


def test_many_reloads_asked_for_at_once_are_few_and_hold_up_no_end(tmp_path: Path) -> None:
    with running_gateway(tmp_path, ONE_WORKER) as running:
        for _ in range(20):
            running.process.send_signal(signal.SIGHUP)
            time.sleep(0.02)  # else the kernel makes one signal of two
        assert running.stop() == 0
        said = [line["message"] for line in running.lines()]
        assert said[-2:] == ["unloaded", "ended"]
        assert said.count("reloaded") <= 3


@pytest.mark.parametrize("same_tasks", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_the_end_does_not_wait_for_a_reload(tmp_path: Path, same_tasks: bool) -> None:
    folder = copy_bundle("fashion-mnist-k2", tmp_path / "bundle")
    models = [{"model": str(folder), "name": "fashion", "workers": 2}]
    with running_gateway(tmp_path / "gateway", {"models": models}) as running:
        workers = set(worker_pids(running))
        copy_bundle(BUNDLE, folder)
        if not same_tasks:
            rename_task(folder, "label", "another")
        loads: list[httpx.Response] = []
        path = f"{running.url}/v2/repository/models/fashion/load"
        loading = threading.Thread(target=lambda: loads.append(httpx.post(path, timeout=60)))
        with Traffic(running, 2, "fashion") as traffic:
            loading.start()
            wait_until(lambda: bool(set(worker_pids(running)) - workers))  # one of the new begins
            assert running.stop() == 0
        loading.join()
        assert loads[0].status_code == 503
        assert "the gateway ends" in loads[0].json()["error"]
        assert set(traffic.statuses) == {200}
        assert all("ConnectError" in error or "reset" in error for error in traffic.errors), (
            traffic.errors
        )
        assert "reloaded" not in [line["message"] for line in running.lines()] or not same_tasks


def test_a_damaged_bundle_is_not_taken_and_the_model_goes_on(tmp_path: Path) -> None:
    folder = copy_bundle(BUNDLE, tmp_path / "bundle")
    models = [{"model": str(folder), "workers": 1}]
    with running_gateway(tmp_path / "gateway", {"models": models}) as running:
        before = version(running)
        with (folder / "weights.safetensors").open("ab") as weights:
            weights.write(b"more")
        path = f"{running.url}/v2/repository/models/{BUNDLE}/load"
        answer = httpx.post(path, timeout=60)
        assert answer.status_code == 500
        assert "weights.safetensors" in answer.json()["error"]
        running.process.send_signal(signal.SIGHUP)
        wait_until(lambda: "not reloaded" in [line["message"] for line in running.lines()])
        assert infer(running).status_code == 200
        assert version(running) == before


@pytest.mark.slow
def test_models_come_and_go(tmp_path: Path) -> None:
    models = [{"model": BUNDLE, "workers": 1}, {"model": BUNDLE, "name": "b", "workers": 1}]
    with running_gateway(tmp_path, {"models": models}) as running:
        client = triton_grpc.InferenceServerClient(running.ready["grpc"])
        client.unload_model("b")
        assert not client.is_model_ready("b")
        assert not client.is_server_ready()
        answer = infer(running, "b")
        assert answer.status_code == 503
        assert "unloaded" in answer.json()["error"]
        assert infer(running).status_code == 200
        index = client.get_model_repository_index(as_json=True)["models"]
        assert {m["name"]: m["state"] for m in index} == {BUNDLE: "READY", "b": "UNAVAILABLE"}
        client.load_model("b")
        assert infer(running, "b").status_code == 200
        assert client.is_server_ready()


@pytest.mark.slow
def test_a_token_over_grpc(tmp_path: Path) -> None:
    with running_gateway(tmp_path, ONE_WORKER, CODEDINV_TOKEN="a-good-token") as running:
        client = triton_grpc.InferenceServerClient(running.ready["grpc"])
        assert client.is_server_live()
        for headers in (None, {"authorization": "Bearer wrong"}):
            with pytest.raises(Exception, match="UNAUTHENTICATED"):
                client.get_model_metadata(BUNDLE, headers=headers)
        good = {"authorization": "Bearer a-good-token"}
        assert client.get_model_metadata(BUNDLE, headers=good).name == BUNDLE
        assert infer(running).status_code == 401
        assert "a-good-token" not in running.log.read_text()


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ca, server and client, PEM files of a day."""
    authority = Authority(tmp_path_factory.mktemp("tls"))
    authority.sign("server")
    authority.sign("client")
    return authority.folder


@pytest.mark.parametrize(
    "mutual",
    [pytest.param(False, marks=pytest.mark.slow, id="tls"), pytest.param(True, id="mtls")],
)
def test_tls(tmp_path: Path, certificates: Path, mutual: bool) -> None:
    settings = ONE_WORKER | {
        "tls_certificate": str(certificates / "server.pem"),
        "tls_key": str(certificates / "server.key"),
    }
    if mutual:
        settings["tls_client_ca"] = str(certificates / "ca.pem")
    pair = str(certificates / "client.pem"), str(certificates / "client.key")
    with running_gateway(tmp_path, settings) as running:
        trust = ssl.create_default_context(cafile=str(certificates / "ca.pem"))
        if mutual:
            with pytest.raises(httpx.HTTPError):
                httpx.get(running.url + "/v2", verify=trust, timeout=30)
            trust.load_cert_chain(*pair)
        assert httpx.get(running.url + "/v2", verify=trust, timeout=30).status_code == 200
        options = {"ssl": True, "root_certificates": str(certificates / "ca.pem")}
        if mutual:
            options |= {"certificate_chain": pair[0], "private_key": pair[1]}
        client = triton_grpc.InferenceServerClient(running.ready["grpc"], **options)
        assert client.is_server_ready()
        client.close()


def test_the_log_is_json_with_request_ids(tmp_path: Path) -> None:
    began = datetime.datetime.now(datetime.UTC)
    with running_gateway(tmp_path, ONE_WORKER | {"access_log": True}) as running:
        get(running, "/v2", headers={"x-request-id": "by-http"})
        get(running, "/nothing", headers={"x-request-id": "not-there"})
        client = triton_grpc.InferenceServerClient(running.ready["grpc"])
        client.get_server_metadata(headers={"x-request-id": "by-grpc"})
        wait_until(lambda: "by-grpc" in running.log.read_text())
        lines = {line["request_id"]: line for line in running.lines() if "request_id" in line}
    assert lines["by-http"]["status"] == 200
    assert lines["not-there"]["status"] == 404
    assert "no page" in lines["not-there"]["error"]
    assert lines["by-grpc"]["code"] == "OK"
    for line in lines.values():
        assert line["seconds"] >= 0
        assert datetime.datetime.fromisoformat(line["time"]) > began - datetime.timedelta(1)


def run_serve(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "codedinv", "serve", *arguments],
        capture_output=True, text=True, timeout=90, cwd=ROOT, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )  # fmt: skip


@pytest.mark.slow
def test_a_port_that_is_taken_is_one_line(gateway: Gateway) -> None:
    for option, address in (("--http-port", "http"), ("--grpc-port", "grpc")):
        port = gateway.ready[address].split(":")[1]
        other = "--grpc-port" if option == "--http-port" else "--http-port"
        finished = run_serve("-m", BUNDLE, "--workers", "1", option, port, other, "0")
        assert finished.returncode == 1
        last = finished.stderr.splitlines()[-1]
        assert last.startswith(f"codedinv: {address}_port: cannot listen on 127.0.0.1:{port}")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("-m", "nobody"), "no model 'nobody'"),
        ((), "models: expected, and not there"),
        (("--workers", "3"), "--workers: expected with --model"),
        (("-m", BUNDLE, "--config", "nowhere.yaml"), "nowhere.yaml"),
        (("-m", BUNDLE, "-m", BUNDLE), f"the name {BUNDLE!r} twice"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(arguments: Any, said: str) -> None:
    finished = run_serve(*arguments, "--http-port", "0", "--grpc-port", "0")
    assert finished.returncode in (1, 2)
    (line,) = finished.stderr.splitlines()
    assert line.startswith("codedinv: ")
    assert said in line


def test_without_the_extra_it_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "uvicorn.py").write_text("raise ModuleNotFoundError('no', name='uvicorn')")
    finished = run_serve("-m", BUNDLE, PYTHONPATH=str(tmp_path))
    assert finished.returncode == 1
    (line,) = finished.stderr.splitlines()
    assert line.endswith("uvicorn, which is not installed: pip install codedinv[gateway]")


def test_importing_codedinv_imports_nothing_of_the_gateway() -> None:
    code = (
        "import sys, codedinv, codedinv.gateway, codedinv.cli.app, codedinv.serving, codedinv.oip; "
        "print([m for m in ('starlette', 'uvicorn', 'grpc', 'orjson', 'google.protobuf', "
        "'prometheus_client', 'pydantic_settings') if m in sys.modules])"
    )
    finished = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert finished.stdout.strip() == "[]"


def in_progress(gateway: Gateway) -> float:
    text = get(gateway, "/metrics").text
    line = next(
        line for line in text.splitlines()
        if line.startswith("codedinv_gateway_requests_in_progress ")
    )  # fmt: skip
    return float(line.split()[1])


def version(gateway: Gateway) -> str:
    (model,) = get(gateway, "/status").json()["models"]
    return str(model["version"])


def worker_pids(gateway: Gateway) -> list[int]:
    import psutil

    children = psutil.Process(gateway.process.pid).children(recursive=True)
    return [p.pid for p in children if "codedinv.workers" in " ".join(p.cmdline())]
