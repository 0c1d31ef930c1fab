"""One version of the model as the server's loop sees it: functions and shapes, built and tried out
before a query meets them."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from codedinv.errors import CodedInvError
from codedinv.schemes import Scheme, ServedModel, build_scheme
from codedinv.schemes.scheme import ENCODED, Array
from codedinv.serving.arrays import stacked
from codedinv.serving.encoding import parities_of
from codedinv.serving.light import Grouping, Sorted, build_fusion, build_sorter
from codedinv.verification import Check, ExactConsistency, OnlineConsistency

Outputs = Mapping[str, Array]  # {task: (B, outputs)}
Fallback = Callable[[Array], Any] | Mapping[str, Any] | Literal["light"] | None

# What a caller's function may do without harm to the server: anything but stop this process.
CALLERS_ERRORS = (Exception, SystemExit)


@dataclass(frozen=True)
class Served:
    """One version of the model.

    Attributes:
        scheme: plan and numerics.
        heads: embeddings (B, *embedding) -> outputs.
        embedding_shape: what a worker must return.
        fallback: queries (B, *input) -> outputs, without any worker; None: there is none.
        consistency: tells a group with a wrong result from a clean one; None: results are not
            checked, or there is nothing to check them by.
        sort: queries (B, *input) -> what the core groups and guides them by; None: nothing.
        fuse: (query, decoded outputs) -> outputs; None: decoded answers are given as they are.
        version: what predictions say of it, see `version_of`.
    """

    scheme: Scheme
    heads: Callable[[Array], Outputs]
    embedding_shape: tuple[int, ...]
    fallback: Callable[[Array], Outputs] | None = None
    consistency: Check | None = None
    sort: Callable[[Array], Sorted] | None = None
    fuse: Callable[[Array, Outputs], Outputs] | None = None
    version: str = ""


def load_model(model: ServedModel | str | Path) -> ServedModel:
    """A model by name, folder or ONNX file; any other is passed through.

    Raises:
        TypeError: it is none of these; the message says how to make one of it.
    """
    if not isinstance(model, str | Path):
        if not hasattr(model, "embedding_shape"):
            raise TypeError(_how_to_make_one_of(model))
        return model
    from codedinv.model import CodedModel

    if Path(model).suffix == ".onnx" and not Path(model).is_dir():
        return CodedModel.from_onnx(model)
    return CodedModel.load(model)


def version_of(model: ServedModel) -> str:
    """What tells a model from its predecessors: the first digits of its bundle's hash; "1" where it
    is no bundle."""
    hashes = getattr(model, "hashes", None) or {}
    version: str = hashes.get("bundle.json", "")[:12] or "1"
    return version


def output_shapes(model: ServedModel) -> dict[str, tuple[int, ...]]:
    """Of each task's outputs, without the batch."""
    tasks = getattr(model, "tasks", None)
    if tasks is not None:
        return {task: (int(outputs),) for task, outputs in tasks.items()}
    anchors = model.anchors.embeddings[:1]
    return {task: tuple(model.head(anchors, task).shape[1:]) for task in model.heads}


def _how_to_make_one_of(model: object) -> str:
    kind = type(model)
    expected = "model: expected a CodedModel, a bundled name, a bundle's folder or an ONNX file"
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(model, torch.nn.Module):
        return (
            f"{expected}, got the torch module {kind.__name__}. Make one of it: "
            'CodedModel.from_modules(name="mine", backbone=module, '
            'heads={"label": torch.nn.Identity()}, anchors_queries=x[:8]), where x are float32 '
            "queries (B, *input); see docs/own-models.md"
        )
    if kind.__module__.partition(".")[0] in ("onnx", "onnxruntime"):
        return f"{expected}, got {kind.__name__}. Make one of its file: CodedModel.from_onnx(path)"
    return f"{expected}, got {kind.__name__}"


def build_served(
    model: ServedModel,
    scheme: str | Scheme,
    fallback: Fallback,
    verify: bool = False,
    grouping: Grouping = "arrival",
    fuse: bool = True,
) -> Served:
    """Puts together what the loop needs of a model; `verify`: also what results are checked by.

    Raises:
        ValueError: an unknown scheme or grouping, anchors that are not finite, a fallback that does
            not fit the model's tasks, or no light model where one is needed.
    """
    tasks = tuple(model.heads)

    def heads(embeddings: Array) -> Outputs:
        return {task: np.asarray(model.head(embeddings, task), np.float32) for task in tasks}

    built = build_scheme(scheme, model)
    answer = _build_fallback(fallback, model, tasks)
    if built.plan.recovered == "fallback" and answer is None:
        raise ValueError(
            f"scheme {built.name!r}: expected a model with a light model, or fallback=..."
        )
    return Served(
        built,
        heads,
        tuple(model.embedding_shape),
        answer,
        _build_check(model, built) if verify else None,
        build_sorter(model, built, grouping),
        build_fusion(model, built, grouping) if fuse else None,
        version_of(model),
    )


def _build_check(model: ServedModel, scheme: Scheme) -> Check | None:
    plan = scheme.plan
    if plan.guided:
        return None
    code = getattr(scheme.decoder(), "code", None) if plan.n > plan.k else None
    if code is None:
        return None
    if plan.recovered == "exact":  # copies
        return ExactConsistency(code)
    if scheme.name not in ENCODED:  # the model's own is calibrated for its own encoder
        return OnlineConsistency(code, tuple(model.embedding_shape))
    calibrated: Check | None = getattr(model, "consistency", None)
    return calibrated or OnlineConsistency(code, tuple(model.embedding_shape))


def try_out(served: Served, input_shape: tuple[int, ...], timeout_s: float) -> None:
    """Runs heads, encoder and fallback once, so that the first query does not pay for their
    loading, and that one which does not work is known now.

    Raises:
        CodedInvError: one of them takes longer than `timeout_s`.
        Whatever they raise, ValueError for results of a wrong shape.
    """
    raised: list[BaseException] = []

    def run() -> None:
        try:
            plan = served.scheme.plan
            heads = served.heads(np.zeros((1, *served.embedding_shape), np.float32))
            expected = _widths(heads)
            if plan.n > plan.k and not plan.guided:
                parities_of(served.scheme, np.zeros((1, plan.k, *input_shape), np.float32))
            if served.sort is not None:
                served.sort(np.zeros((1, *input_shape), np.float32))
            if served.fallback is not None:
                got = _widths(served.fallback(np.zeros((1, *input_shape), np.float32)))
                if got != expected:
                    raise ValueError(f"fallback: expected outputs {expected}, got {got}")
        except BaseException as error:  # handed to the thread that waits
            raised.append(error)

    # In a thread of its own, or one that hangs would hang the constructor.
    thread = threading.Thread(target=run, name="codedinv-try-out", daemon=True)
    thread.start()
    thread.join(min(timeout_s, threading.TIMEOUT_MAX))
    if thread.is_alive():
        raise CodedInvError(f"heads, encoder or fallback take longer than {timeout_s} s")
    if raised:
        raise raised[0]


def rows_of(
    function: Callable[[Array], Outputs], inputs: list[Array]
) -> list[dict[str, Array] | BaseException]:
    """What `function` makes of each input, all at once; where that fails, one by one, so that what
    is wrong with one harms no other."""
    try:
        outputs = function(stacked(inputs))
        for task, rows in outputs.items():
            if np.shape(rows)[:1] != (len(inputs),):
                got = np.shape(rows)
                raise ValueError(f"{task}: expected {len(inputs)} rows, got shape {got}")
        return [
            {task: rows[i].copy() for task, rows in outputs.items()} for i in range(len(inputs))
        ]
    except CALLERS_ERRORS as error:
        if len(inputs) == 1:
            return [error]
        return [rows_of(function, [one])[0] for one in inputs]


def _widths(outputs: Outputs) -> dict[str, tuple[int, ...]]:
    return {task: np.shape(rows)[1:] for task, rows in outputs.items()}


def _build_fallback(
    fallback: Fallback, model: ServedModel, tasks: tuple[str, ...]
) -> Callable[[Array], Outputs] | None:
    light = getattr(model, "light", None)
    if fallback == "light" and light is None:
        raise ValueError(f"fallback: the model {model.name!r} has no light model")
    if fallback is None or fallback == "light":
        fallback = light
    if fallback is None:
        return None
    if isinstance(fallback, Mapping):
        return _constant(fallback, tasks)
    if not callable(fallback):
        raise ValueError(
            f"fallback: expected 'light', a callable or a mapping task -> outputs, got {fallback!r}"
        )
    function = fallback

    def answer(queries: Array) -> Outputs:
        outputs = function(queries)
        if not isinstance(outputs, Mapping):
            if len(tasks) != 1:
                raise ValueError(f"fallback: expected a mapping of {list(tasks)}, got an array")
            outputs = {tasks[0]: outputs}
        return {task: np.asarray(outputs[task], np.float32) for task in tasks}

    return answer


def _constant(constants: Mapping[str, Any], tasks: tuple[str, ...]) -> Callable[[Array], Outputs]:
    if set(constants) != set(tasks):
        raise ValueError(f"fallback: expected outputs of {list(tasks)}, got {list(constants)}")
    arrays = {task: np.array(constants[task], np.float32) for task in tasks}

    def answer(queries: Array) -> Outputs:
        return {task: np.tile(row, (len(queries), *[1] * row.ndim)) for task, row in arrays.items()}

    return answer
