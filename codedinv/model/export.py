"""Networks as ONNX files, each checked against torch before it is let out.

The TorchScript exporter (`dynamo=False`) is used: it takes any of our networks (convolution, ELU,
add, space-to-depth, batch norm, linear, mean) and needs nothing but onnx, while the newer exporter
of torch 2.9 and later needs onnxscript as well. Weights lie inside each file, so that it can be
copied elsewhere (a Triton model repository) alone, or in a safetensors file beside several.
"""

from __future__ import annotations

import io
import warnings
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from codedinv.errors import BundleError
from codedinv.nn.attention import plain_attention

OPSET = 17  # the lowest with all that is needed: older runtimes can load the files
TOLERANCE = 1e-4
# The exporter warns of each Python branch on a shape; the check at another batch size is the proof.
_TRACER_WARNING = torch.jit.TracerWarning  # type: ignore[attr-defined]  # not in its __all__


class _OneInput(torch.nn.Module):
    """Hides the optional arguments of a network, which the exporter would make inputs of."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: torch.Tensor) -> Any:
        return self.module(x)


def to_onnx(
    module: torch.nn.Module, example: torch.Tensor, input_name: str, output_name: str
) -> tuple[bytes, float]:
    """Exports a network and checks the export.

    Args:
        module: one tensor in, one tensor out; run in eval mode.
        example: float32 input (B, ...) with B >= 3; the graph takes any batch size, and is checked
            at B although traced at 2, so a batch size baked into the graph is caught.
        input_name, output_name: names in the graph.

    Returns:
        The ONNX file's bytes and the largest error found, relative to the largest output.

    Raises:
        BundleError: it cannot be exported, the graph does not run, or differs from torch by more
            than 1e-4.
    """
    if len(example) < 3:
        raise ValueError(f"example: expected a batch of at least 3, got {len(example)}")
    module = module.eval()
    example = example.detach()
    buffer = io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", category=_TRACER_WARNING)
        warnings.filterwarnings("ignore", message="Constant folding", category=UserWarning)
        try:
            with plain_attention():
                torch.onnx.export(
                    _OneInput(module).eval(),  # else the exporter leaves all in training mode
                    (example[:2],),
                    buffer,  # type: ignore[arg-type]  # its stub forgets files, which it still takes
                    dynamo=False,
                    opset_version=OPSET,
                    input_names=[input_name],
                    output_names=[output_name],
                    dynamic_axes={input_name: {0: "batch"}, output_name: {0: "batch"}},
                )
        except Exception as error:  # the exporter's kinds have no common base
            raise BundleError(
                f"{type(module).__name__} cannot be exported as the ONNX graph {input_name} -> "
                f"{output_name}: {error}. Another exporter may do it: CodedModel.from_onnx takes "
                "its file"
            ) from error
        expected = module(example).cpu().numpy()
    content = _with_static_output_shape(buffer.getvalue(), expected.shape[1:])
    off = relative_error(content, example.cpu().numpy(), expected)
    if not off <= TOLERANCE:
        raise BundleError(
            f"the ONNX graph {input_name} -> {output_name} differs from torch by {off:.2g} of "
            f"its largest output (allowed: {TOLERANCE:g}); it was not written"
        )
    return content, off


def relative_error(content: bytes, x: NDArray[Any], expected: NDArray[Any]) -> float:
    """Largest |ONNX output - expected| over the largest |expected|; infinite on a wrong shape.

    Runs in ONNX Runtime where that is installed, else in onnx's own (slow) reference.

    Raises:
        BundleError: the graph does not load or run.
    """
    try:
        got = _run(content, x)
    except Exception as error:  # each engine raises its own kinds, without a common base
        raise BundleError(
            f"the exported ONNX graph does not run for a batch of {len(x)}: {error}. Does the "
            "network make a tensor of the batch's size, which the graph then keeps? x.shape[0] is "
            "followed by the exporter, len(x) is not"
        ) from error
    if got.shape != expected.shape:
        return float("inf")
    return float(np.abs(got - expected).max() / max(float(np.abs(expected).max()), 1e-12))


def _run(content: bytes, x: NDArray[Any]) -> NDArray[Any]:
    try:
        import onnxruntime
    except ImportError:
        from onnx.reference import ReferenceEvaluator

        evaluator = ReferenceEvaluator(onnx.load_from_string(content))
        outputs: Any = evaluator.run(None, {str(evaluator.input_names[0]): x})
        return np.asarray(outputs[0])
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {session.get_inputs()[0].name: x})[0])


def _with_static_output_shape(content: bytes, shape: tuple[int, ...]) -> bytes:
    """Replaces the exporter's guesses (`Addembedding_dim_1`) by the sizes that are known."""
    model = onnx.load_from_string(content)
    dimensions = model.graph.output[0].type.tensor_type.shape.dim
    del dimensions[:]
    dimensions.add().dim_param = "batch"
    for size in shape:
        dimensions.add().dim_value = size
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())
