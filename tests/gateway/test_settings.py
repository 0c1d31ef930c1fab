"""Settings: what wins, and how a wrong key is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from codedinv.gateway import load_settings
from codedinv.workers.oip import Security
from tests.certificates import Authority

MODELS = [{"model": "fashion-mnist"}]


def write(folder: Path, **values: Any) -> Path:
    file = folder / "server.yaml"
    file.write_text(yaml.safe_dump(values))
    return file


def test_arguments_win_over_the_environment_which_wins_over_the_file(tmp_path: Path) -> None:
    file = write(tmp_path, models=MODELS, host="::1", http_port=1, grpc_port=1, max_batch=1)
    environment = {"CODEDINV_HTTP_PORT": "2", "CODEDINV_GRPC_PORT": "2"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        found = load_settings({"http_port": 3}, file)
    assert (found.http_port, found.grpc_port, found.host, found.max_batch) == (3, 2, "::1", 1)


def test_models_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    models = '[{"model": "fashion-mnist", "workers": 2, "policy": {"release": "grace"}}]'
    monkeypatch.setenv("CODEDINV_MODELS", models)
    (model,) = load_settings({}).models
    assert model.workers == 2
    assert model.policy.release == "grace"


def test_workers_may_be_addresses(tmp_path: Path) -> None:
    addresses = ["grpc://127.0.0.1:8001", "http://127.0.0.1:8000"]
    file = write(tmp_path, models=[{"model": "fashion-mnist", "workers": addresses}])
    assert load_settings({}, file).models[0].workers == tuple(addresses)


def test_workers_may_take_batches_and_have_devices(tmp_path: Path) -> None:
    asked = {"max_batch": 8, "max_queue_delay_us": 200, "devices": ["cuda:0", "cuda:1"]}
    models = [{"model": "fashion-mnist", "runtime": "torch", **asked}]
    (model,) = load_settings({}, write(tmp_path, models=models)).models
    assert (model.max_batch, model.max_queue_delay_us, model.runtime) == (8, 200, "torch")
    assert model.devices == ("cuda:0", "cuda:1")
    models[0]["max_batch"] = 65
    with pytest.raises(
        ValueError, match=r"models\.0\.max_batch: .*less than or equal to 64, got 65"
    ):
        load_settings({}, write(tmp_path, models=models))


def test_workers_may_ask_for_certificates_and_a_token(tmp_path: Path) -> None:
    workers = ["grpcs://127.0.0.1:8001"]
    certificate, key = Authority(tmp_path).sign("gateway")
    files = {"ca": tmp_path / "ca.pem", "certificate": certificate, "key": key}
    security = {name: str(file) for name, file in files.items()} | {"token": "a-secret"}
    models = [{"model": "fashion-mnist", "workers": workers, "security": security}]
    settings = load_settings({}, write(tmp_path, models=models))
    assert settings.models[0].security_of_workers == Security(**files, token="a-secret")
    assert "a-secret" not in repr(settings)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"prot": 1}, r"prot: no such setting"),
        ({"http_port": "x"}, r"http_port: .*got 'x'"),
        ({"http_port": 65536}, r"http_port: .*65535.*got 65536"),
        ({"models": []}, r"models: .*at least 1"),
        ({"models": [{"mode": "a"}]}, r"models\.0\.model: expected, and not there"),
        ({"models": [{"model": "a", "worker": 3}]}, r"models\.0\.worker: no such setting"),
        ({"models": [{"model": "a", "workers": 0}]}, r"models\.0\.workers.*1"),
        ({"models": [{"model": "a", "name": "a/b"}]}, r"models\.0\.name: .*pattern"),
        ({"models": [{"model": "a", "scheme": "raid"}]}, r"models\.0\.scheme: .*'raid'"),
        (
            {"models": [{"model": "a", "policy": {"relese": "grace"}}]},
            r"models\.0\.policy: .*unknown: relese",
        ),
        (
            {"models": [{"model": "a", "policy": {"grace_s": -1}}]},
            r"models\.0\.policy: .*grace_s: expected 0 or more",
        ),
        ({"tls_key": "nowhere"}, r"tls_certificate and tls_key: expected both"),
        (
            {"tls_key": "nowhere", "tls_certificate": "nowhere"},
            r"tls_certificate: no such file: nowhere",
        ),
        ({"tls_client_ca": "nowhere"}, r"tls_client_ca: expected with"),
        (
            {"models": [{"model": "a", "workers": 2, "security": {"token": "secret"}}]},
            r"models\.0: .*security: expected with workers that are addresses",
        ),
        *(
            ({"models": [{"model": "a", "workers": ["grpcs://h:1"], "security": security}]}, said)
            for security, said in (
                ({"ca": "nowhere"}, r"models\.0: .*security: ca: no such file: nowhere"),
                ({"key": "nowhere"}, r"models\.0: .*certificate and key: expected both"),
                ({"cert": "nowhere"}, r"models\.0\.security\.cert: no such setting"),
            )
        ),
        (
            {"max_body_bytes": 4096, "max_total_body_bytes": 2048},
            r"max_total_body_bytes: expected at least max_body_bytes, 4096, got 2048",
        ),
        ({"drain_timeout_s": 0}, r"drain_timeout_s: .*greater than 0"),
        ({"drain_delay_s": float("inf")}, r"drain_delay_s: .*finite"),
    ],
)
def test_a_wrong_key_is_named(tmp_path: Path, values: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        load_settings({}, write(tmp_path, **({"models": MODELS} | values)))


def test_a_wrong_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CODEDINV_HTTP_PROT", "1")
    with pytest.raises(ValueError, match=r"environment: unknown CODEDINV_HTTP_PROT; known are"):
        load_settings({"models": MODELS})


def test_a_short_token_is_refused_without_showing_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"token: .*8") as raised:
        load_settings({}, write(tmp_path, models=MODELS, token="hunter2"))
    assert "hunter2" not in str(raised.value)


def test_a_token_is_not_shown_by_the_settings() -> None:
    assert "a-good-token" not in repr(load_settings({"models": MODELS, "token": "a-good-token"}))


@pytest.mark.parametrize("text", ["- a\n- b\n", "a: [", "1: 2\n"])
def test_a_file_that_is_no_mapping_is_named(tmp_path: Path, text: str) -> None:
    file = tmp_path / "server.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=r"server\.yaml"):
        load_settings({"models": MODELS}, file)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere\.yaml"):
        load_settings({"models": MODELS}, tmp_path / "nowhere.yaml")


def test_a_mistake_in_the_file_is_told_without_the_line_itself(tmp_path: Path) -> None:
    file = tmp_path / "server.yaml"
    file.write_text('models: [{model: fashion-mnist}]\ntoken: "secret-secret\n')
    with pytest.raises(ValueError, match=r"server\.yaml: line 3: .*end of stream") as told:
        load_settings({}, file)
    assert "secret-secret" not in str(told.value)


def test_files_that_are_no_certificates_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.pem").write_text("hello")
    values = {
        "models": MODELS,
        "tls_certificate": tmp_path / "a.pem",
        "tls_key": tmp_path / "a.pem",
    }
    with pytest.raises(ValueError, match="tls_certificate and tls_key: expected a PEM pair"):
        load_settings(values)
