"""Encoder, backbone and head of a bundle on every runtime, all on one thread, to be timed.

torch compiles the encoder only: to compile a backbone takes minutes, and the encoder is what is to
be paid at the front end. Its backbone and head are eager ones then.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from torch import nn

from codedinv import CodedModel

BUNDLES = {2: "fashion-mnist-k2", 4: "fashion-mnist", 10: "fashion-mnist-k10"}
BATCHES = (1, 32, 256)
PARTS = ("encoder", "backbone", "head")
RUNTIMES = ("torch eager", "torch compiled", "onnx fp32", "onnx int8")
_FILES = {"encoder": "encoder.onnx", "backbone": "backbone.onnx", "head": "head_label.onnx"}
_CLOSE = 2e-3  # relative: what another order of summation may make of a deep network

Array = np.ndarray[Any, np.dtype[np.float32]]
Call = Callable[[Array], Array]


class NotAvailable(RuntimeError):
    """A runtime that does not run here; the message says why."""


@dataclass(frozen=True)
class Networks:
    """The parts of one bundle on one runtime."""

    calls: dict[str, Call]


def load(k: int, runtime: str) -> Networks:
    """The parts of the bundle of this k.

    Raises:
        NotAvailable: the runtime does not run here.
    """
    model = CodedModel.load(BUNDLES[k])
    assert model.folder is not None
    torch.set_num_threads(1)
    if runtime.startswith("torch"):
        modules = _torch_modules(model)
        compiled = ("encoder",) if runtime == "torch compiled" else ()
        return Networks({part: _torch_call(modules[part], part in compiled) for part in PARTS})
    is_int8 = runtime == "onnx int8"
    return Networks({part: _onnx_call(model.folder / _FILES[part], is_int8) for part in PARTS})


def inputs(model: CodedModel, batch: int) -> dict[str, Array]:
    """Random input of every part: `batch` groups, queries, embeddings."""
    random = np.random.default_rng(batch)
    shapes = {
        "encoder": (batch, model.code.k, *model.input_shape),
        "backbone": (batch, *model.input_shape),
        "head": (batch, *model.embedding_shape),
    }
    return {part: random.random(shape, np.float32) for part, shape in shapes.items()}


def check(networks: Networks, reference: Networks, examples: dict[str, Array]) -> None:
    """Nothing is timed before it gives what torch gives.

    Raises:
        ValueError: it names the part, and how far off it is.
    """
    for part, call in networks.calls.items():
        got, wanted = call(examples[part]), reference.calls[part](examples[part])
        error = np.abs(got - wanted).max() / np.abs(wanted).max()
        if not error < _CLOSE:
            raise ValueError(f"{part}: expected torch's result, got one {error:.1e} off")


def _torch_modules(model: CodedModel) -> dict[str, nn.Module]:
    modules = model.modules
    assert modules.encoder is not None
    head = next(iter(modules.heads.values()))
    return {"encoder": modules.encoder, "backbone": modules.backbone, "head": head}


def _torch_call(module: nn.Module, is_compiled: bool) -> Call:
    module = module.eval()
    run: Callable[[torch.Tensor], torch.Tensor] = module
    if is_compiled:
        run = torch.compile(module, dynamic=True)

    def call(x: Array) -> Array:
        with torch.inference_mode():
            return run(torch.from_numpy(x)).numpy()

    return call


def _onnx_call(path: Path, is_int8: bool) -> Call:
    with tempfile.TemporaryDirectory() as folder:
        if is_int8:
            quantised = Path(folder) / path.name
            logging.disable(logging.WARNING)  # it warns of every tensor that it leaves in fp32
            try:
                quantize_dynamic(path, quantised, weight_type=QuantType.QUInt8)
            finally:
                logging.disable(logging.NOTSET)
            path = quantised
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        try:
            session = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # ONNX Runtime raises many kinds
            raise NotAvailable(str(error).splitlines()[0]) from error
    name = session.get_inputs()[0].name
    return lambda x: session.run(None, {name: x})[0]
