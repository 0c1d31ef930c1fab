"""The course of a fit: train, measure, choose."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from torch import nn

from codedinv.coding import Code
from codedinv.data import Examples
from codedinv.experiments.accuracy import known_of
from codedinv.experiments.degraded import Known, in_batches
from codedinv.experiments.fusing import fit_fusion
from codedinv.experiments.intervals import interval
from codedinv.experiments.receipts import circumstances
from codedinv.fitting.candidates import Candidate, Measured, coded, guided, without_code
from codedinv.fitting.choose import choose
from codedinv.fitting.report import Report
from codedinv.fitting.settings import Settings, percent
from codedinv.fitting.stages import fit_encoder, fit_light
from codedinv.fitting.subject import Subject, anchors_of
from codedinv.model import CodedModel


@dataclass
class Course:
    """One fit.

    Attributes:
        subject: what is coded.
        settings: how.
        work: folder of checkpoints.
        resume: whether to go on from them.
        console: for progress.
    """

    subject: Subject
    settings: Settings
    work: Path
    resume: bool
    console: Console

    def run(self) -> tuple[CodedModel, Report]:
        """The model of the best candidate, and the report of all.

        Raises:
            ValueError: the model cannot be coded; the message says why.
        """
        started = time.monotonic()
        subject, settings = self.subject, self.settings
        queries, labels = subject.test.queries(), subject.test.labels
        self._say("exact answers of the test examples")
        known = known_of(subject.plain, queries)
        _check_worth(known, labels)
        light = self._light()
        models = {("uncoded", 1): self._model("uncoded", 2, light)}
        known = _with_light(known, models["uncoded", 1], queries)
        measured = Measured(known, labels, settings.unavailable)
        candidates = list(without_code(measured, self._share_of(models["uncoded", 1])))
        omitted: dict[str, str] = {}
        for k in settings.ks:
            for model in self._models_of(k, light, omitted):
                models[model.scheme, k] = model
                self._say(f"measuring {model.scheme}, k = {k}")
                about = (measured, model, queries, settings.seed, self._quietly)
                if model.scheme == "guided":
                    candidates += guided(*about)
                else:
                    candidates += coded(*about, settings.budget)
        choice = choose(candidates, settings.unavailable, measured.worth, settings.scheme)
        report = self._report(measured, candidates, choice.best, choice.why, omitted, started)
        return self._finished(models, report, light), report

    def _light(self) -> nn.Module:
        title, out = f"light model (1 of {1 + len(self.settings.ks)})", self.work / "light"
        return fit_light(self.subject, self.settings, out, title, self.resume, self.console)

    def _models_of(self, k: int, light: nn.Module, omitted: dict[str, str]) -> Iterator[CodedModel]:
        """The guided and the coded model of groups of k."""
        yield self._model("guided", k, light)
        if not self.subject.parts.differentiable:
            omitted["code"] = (
                "an encoder learns by gradients through the backbone, which an ONNX file does not "
                "give; give its torch modules"
            )
            return
        place = self.settings.ks.index(k) + 2
        title = f"encoder, k = {k} ({place} of {1 + len(self.settings.ks)})"
        out = self.work / f"encoder-k{k}"
        try:
            encoder = fit_encoder(
                self.subject, self.settings, light, k, out, title, self.resume, self.console
            )
        except ValueError as error:
            if not str(error).startswith("budget:"):
                raise
            omitted[f"code, k = {k}"] = str(error)
            return
        alone = self._model("invertible", k, light, encoder)
        macs = alone.metadata["macs"]
        share = macs["encoder"] / macs["backbone"]
        if share > self.settings.budget:
            omitted[f"code, k = {k}"] = (
                f"its encoder takes {percent(share)} of a backbone call, "
                f"the budget is {percent(self.settings.budget)}; only workers can encode"
            )
        held_out = self.subject.held_out
        fusion = fit_fusion(
            alone,
            held_out.queries().cpu().numpy(),
            held_out.labels.cpu().numpy(),
            self.settings.seed,
        )
        yield self._model("invertible", k, light, encoder, fusion.weights)

    def _model(
        self,
        scheme: str,
        k: int,
        light: nn.Module,
        encoder: nn.Module | None = None,
        fusion: Mapping[str, tuple[float, float]] | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> CodedModel:
        subject = self.subject
        more: dict[str, Any] = {} if encoder is None else {"encoder": encoder}
        return subject.parts.model(
            light,
            name=self.settings.name,
            code=Code.uniform(k),
            anchors_queries=anchors_of(subject.train, self.settings),
            metadata=metadata,
            fusion=fusion,
            scheme=scheme,
            input_range=subject.train.input_range,
            **more,
        )

    def _finished(
        self, models: Mapping[tuple[str, int], CodedModel], report: Report, light: nn.Module
    ) -> CodedModel:
        """The model of the best candidate, which knows what was measured of it."""
        best = report.best
        scheme = "invertible" if best.scheme == "worker-encoded" else best.scheme
        source = models["uncoded" if scheme == "replication" else scheme, best.k]
        fusion = source.fusion.weights if source.fusion is not None and best.fused else None
        metadata = {
            "metrics": {
                "unit": "percent",
                "A_n": best.normal.mean,
                "A_d": best.degraded.mean,
                "floor": report.light.mean,  # below it nothing is worth reconstructing
                "images": report.examples,
                "interval95": {
                    name: [found.low, found.high]
                    for name, found in (
                        ("A_n", best.normal), ("A_d", best.degraded), ("light", report.light),
                    )
                },
            },
            "fit": report.to_dict(),
            "provenance": {
                **_learnt(self.subject.train),
                "settings": asdict(self.settings),
                **circumstances(),
            },
        }  # fmt: skip
        encoder = source.modules.encoder if scheme == "invertible" else None
        return self._model(best.scheme, max(2, best.k), light, encoder, fusion, metadata)

    def _report(
        self,
        measured: Measured,
        candidates: list[Candidate],
        best: Candidate,
        why: str,
        omitted: Mapping[str, str],
        started: float,
    ) -> Report:
        images = np.arange(len(measured.labels))
        at = self.settings.unavailable
        fallback = next(one for one in candidates if one.scheme == "uncoded")
        return Report(
            model=self.settings.name,
            candidates=sorted(candidates, key=lambda one: -one.overall[at].mean),
            best=best,
            why=why,
            unavailable=at,
            light=interval(measured.light, images),
            worth=measured.worth,
            light_over_backbone=fallback.front_end_lost,
            omitted=omitted,
            examples=len(images),
            seconds=time.monotonic() - started,
        )

    def _share_of(self, model: CodedModel) -> float:
        macs = model.metadata["macs"]
        return float(macs["light"] / macs["backbone"])

    def _say(self, message: str) -> None:
        self.console.print(message, highlight=False)

    def _quietly(self, message: str) -> None:
        """Progress of a measurement, which is short beside a training."""


def _learnt(train: Examples) -> dict[str, Any]:
    """What the provenance says of the data, so that `codedinv evaluate` and others find them."""
    about: dict[str, Any] = {"data_set": train.source, "classes": train.classes}
    if train.path is not None:
        about |= {"data_set": Path(train.path).name, "data_folder": train.path}
    return about


def _with_light(known: Known, model: CodedModel, queries: NDArray[np.float32]) -> Known:
    """What is known of the test queries, with the light model's answers to the first task."""
    light, task = model.light, next(iter(model.tasks))
    if light is None:
        raise ValueError("model: expected one with a light model")
    return replace(known, light=in_batches(lambda x: light(x)[task], queries))


def _check_worth(known: Known, labels: NDArray[np.int64]) -> None:
    """Refuses a backbone that has learnt nothing: whatever is measured of it says nothing.

    Raises:
        ValueError: it is not measurably better than one class for all.
    """
    commonest = 100 * float(np.bincount(labels).max()) / len(labels)
    normal = interval(known.exact.argmax(axis=1) == labels, np.arange(len(labels)))
    if normal.low <= commonest:
        raise ValueError(
            f"backbone: it answers {normal} % of the test examples right, and the same "
            f"class for all would answer {commonest:.2f} %; give it its trained weights, and test "
            "labels numbered as it has learnt them"
        )
