"""From a trained model to a bundle that serves, with a table that says what it is worth."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import codedinv
from codedinv import CodedModel, CodedServer
from codedinv.errors import UnprovenWarning
from codedinv.experiments.accuracy import evaluate
from codedinv.fitting.report import Report
from codedinv.model.export import to_onnx


@pytest.fixture(scope="module")
def fitted(tabular: Any, quick: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    out = tmp_path_factory.mktemp("fit")
    model = codedinv.fit(**tabular._asdict(), k=(2, 4), out=out, name="mine", **quick)
    return model, out


@pytest.fixture(scope="module")
def coded(tabular: Any, quick: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    out = tmp_path_factory.mktemp("coded")
    model = codedinv.fit(**tabular._asdict(), k=2, out=out, scheme="invertible", **quick)
    return model, out


def served_through_a_killed_worker(
    bundle: Path, queries: np.ndarray, scheme: str | None = None
) -> list[Any]:
    with CodedServer(bundle, workers=3, scheme=scheme) as server:
        futures = [server.submit(x) for x in queries[:20]]
        server.pool.kill(0)
        futures += [server.submit(x) for x in queries[20:40]]
        return [future.result(timeout=60) for future in futures]


@pytest.mark.timeout(300)
def test_what_a_fit_leaves_is_served_through_a_killed_worker(fitted: Any, tabular: Any) -> None:
    model, out = fitted
    answers = served_through_a_killed_worker(out / "bundle", tabular.test[0])
    right = [a.outputs["label"].argmax() for a in answers] == tabular.test[1][:40]
    assert len(answers) == 40
    assert np.mean(right) > 0.5
    assert model.name == "mine"


@pytest.mark.timeout(300)
def test_a_coded_bundle_reconstructs_through_a_killed_worker(coded: Any, tabular: Any) -> None:
    model, out = coded
    assert model.scheme == "invertible"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnprovenWarning)  # so short a training proves nothing
        answers = served_through_a_killed_worker(out / "bundle", tabular.test[0], "invertible")
    right = [a.outputs["label"].argmax() for a in answers] == tabular.test[1][:40]
    assert len(answers) == 40
    assert np.mean(right) > 0.5


def test_every_scheme_is_a_candidate_for_every_k(fitted: Any) -> None:
    report: Report = fitted[0].report
    found = {(one.scheme, one.k) for one in report.candidates}
    assert found == {
        ("uncoded", 1), ("replication", 1), ("guided", 2), ("guided", 4), ("invertible", 2),
        ("invertible", 4), ("worker-encoded", 2), ("worker-encoded", 4),
    }  # fmt: skip
    ways = {(one.grouping, one.fused) for one in report.candidates if one.scheme == "invertible"}
    assert ways == {(g, f) for g in ("arrival", "alike") for f in (False, True)}
    assert report.omitted == {}


def test_the_table_is_sorted_and_says_what_each_costs(fitted: Any) -> None:
    report: Report = fitted[0].report
    overall = [one.overall[0.05].mean for one in report.candidates]
    assert overall == sorted(overall, reverse=True)
    by_title = {one.title: one for one in report.candidates}
    assert by_title["no redundancy, fall back"].workers == 0
    assert by_title["replication, 2 copies"].workers == 1
    assert by_title["guided, k = 4"].workers == by_title["code, k = 4"].workers == 0.25
    macs = fitted[0].metadata["macs"]
    light = macs["light"] / macs["backbone"]
    assert light <= 0.05
    assert by_title["guided, k = 4"].front_end == pytest.approx(light)
    assert 0 < by_title["code, k = 4"].front_end <= 0.1 / 4
    assert by_title["code, k = 4, alike"].front_end == pytest.approx(
        by_title["code, k = 4"].front_end + light
    )
    for one in report.candidates:
        assert one.degraded.low <= one.degraded.mean <= one.degraded.high
        assert set(one.overall) == {0.01, 0.05, 0.10}


def test_the_report_says_that_300_test_examples_are_few(fitted: Any) -> None:
    words = "Only 300 test examples: an accuracy is known to ±6 points at worst"
    report: Report = fitted[0].report
    assert words in str(report)
    assert words in str(report.table().caption)


def test_overall_accuracies_follow_from_the_parts(fitted: Any) -> None:
    report: Report = fitted[0].report
    for one in report.candidates:
        arrive = {"uncoded": 0.0, "replication": 0.95, "guided": 0.95}.get(one.scheme, 0.95**one.k)
        lost = arrive * one.degraded.mean + (1 - arrive) * report.light.mean
        expected = 0.95 * one.normal.mean + 0.05 * lost
        assert one.overall[0.05].mean == pytest.approx(expected, abs=0.05), one.title


def test_the_report_lies_beside_the_bundle_and_within_it(fitted: Any) -> None:
    model, out = fitted
    written = json.loads((out / "report.json").read_text())
    assert written == model.report.to_dict()
    loaded = CodedModel.load(out / "bundle")
    assert loaded.metadata["fit"]["best"] == model.report.best.title
    assert loaded.metadata["metrics"]["A_d"] == model.report.best.degraded.mean
    assert loaded.metadata["metrics"]["floor"] == model.report.light.mean
    assert (out / "frontier.png").stat().st_size > 5000
    assert model.report.why in str(model.report)


def test_the_bundles_numbers_are_those_that_evaluate_finds(coded: Any, tabular: Any) -> None:
    model, out = coded
    best = model.report.best
    found = evaluate(CodedModel.load(out / "bundle"), *tabular.test, groupings=3, seed=0)
    way = ("choosing" if best.grouping == "alike" else "arrival") + " + fused" * best.fused
    assert found.normal.mean == pytest.approx(best.normal.mean, abs=0.5)
    assert found.degraded_by_way[way].mean == pytest.approx(best.degraded.mean, abs=0.5)


def test_the_model_that_is_coded_stays_as_it_is(fitted: Any, tabular: Any) -> None:
    x = torch.from_numpy(tabular.test[0][:8])
    with torch.no_grad():
        expected = tabular.heads["label"](tabular.backbone(x)).numpy()
    model = fitted[0]
    np.testing.assert_allclose(model.head(model.embed(x.numpy())), expected, atol=1e-4)
    assert all(p.requires_grad for p in tabular.backbone.parameters())


@pytest.mark.timeout(300)
def test_an_onnx_file_gets_every_scheme_that_needs_no_gradient(
    tabular: Any, quick: dict[str, Any], tmp_path: Path
) -> None:
    whole = nn.Sequential(tabular.backbone, tabular.heads["label"])
    graph = to_onnx(whole, torch.from_numpy(tabular.test[0][:4]), "x", "y")[0]
    (tmp_path / "mine.onnx").write_bytes(graph)
    model = codedinv.fit(
        backbone=tmp_path / "mine.onnx", train=tabular.train, test=tabular.test, k=2,
        out=tmp_path / "out", **quick,
    )  # fmt: skip
    schemes = {one.scheme for one in model.report.candidates}
    assert schemes == {"uncoded", "replication", "guided"}
    assert "gradients" in model.report.omitted["code"]
    answers = served_through_a_killed_worker(tmp_path / "out" / "bundle", tabular.test[0])
    right = [a.outputs["output"].argmax() for a in answers] == tabular.test[1][:40]
    assert np.mean(right) > 0.5


def test_a_fit_goes_on_where_it_was_and_refuses_other_data(
    tabular: Any, quick: dict[str, Any], tmp_path: Path
) -> None:
    about = {**tabular._asdict(), "k": 2, "out": tmp_path, "scheme": "guided", **quick}
    first = codedinv.fit(**about)
    stamp = (tmp_path / "work" / "encoder-k2" / "encoder.checkpoint").stat().st_mtime
    again = codedinv.fit(**about)
    assert again.report.to_dict()["candidates"] == first.report.to_dict()["candidates"]
    assert stamp <= (tmp_path / "work" / "encoder-k2" / "encoder.checkpoint").stat().st_mtime
    x, y = tabular.train
    with pytest.raises(ValueError, match=r"is of another training: data was .* --fresh"):
        codedinv.fit(**{**about, "train": (x + 1e-3, y)})
    with pytest.raises(ValueError, match=r"budget was 0.1, is 0.3"):
        codedinv.fit(**about, budget=0.3)


@pytest.mark.timeout(300)
def test_the_ten_lines_of_the_page_run(tabular: Any, capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "fit.md").read_text()
    (block,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(block.strip().splitlines()) <= 10
    quick = block.replace("k=(2, 4, 10)\n", "k=2, encoder_steps=20, light_epochs=4, threads=1\n")
    assert quick != block
    (x, y), (x_test, y_test) = tabular.train, tabular.test
    names = {"backbone": tabular.backbone, "head": tabular.heads["label"], "x": x, "y": y}
    exec(quick, {**names, "x_test": x_test, "y_test": y_test})
    assert "no redundancy, fall back" in capsys.readouterr().out


@pytest.mark.timeout(300)
@pytest.mark.parametrize("scheme", ["uncoded", "replication"])
def test_a_scheme_without_groups_is_kept_where_it_is_asked_for(
    tabular: Any, quick: dict[str, Any], tmp_path: Path, scheme: str
) -> None:
    about = {**tabular._asdict(), **quick, "k": 2, "encoder_steps": 2}
    model = codedinv.fit(**about, out=tmp_path, scheme=scheme)
    assert (model.scheme, model.report.best.scheme) == (scheme, scheme)
    assert CodedModel.load(tmp_path / "bundle").scheme == scheme
    assert model.report.why.startswith(f"Serve {model.report.best.title}, as {scheme} was asked")
