"""Networks that can be called with numpy arrays or torch tensors: by ONNX Runtime, or by torch.

torch is imported only where a caller already uses it, so that a front end or worker that runs on
ONNX Runtime starts within a second and stays near 100 MB.
"""

from __future__ import annotations

import importlib.util
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from codedinv.errors import BundleError
from codedinv.model.onnx_install import import_onnxruntime

if TYPE_CHECKING:
    import torch

    ArrayT = TypeVar("ArrayT", NDArray[Any], torch.Tensor)
else:
    ArrayT = TypeVar("ArrayT")

Runtime = Literal["auto", "onnx", "torch"]


class Network(Protocol):
    """A network without its weights' whereabouts: the result is of the kind of the argument."""

    def __call__(self, x: ArrayT) -> ArrayT: ...


class OnnxNetwork:
    """An ONNX graph in an ONNX Runtime session, opened by `open` or the first call.

    Args:
        source: a file, or its content: a model with one input and one output.
        threads: intra-op threads of the session. Idle ones sleep rather than spin: a front end
            shares its cores with the workers.
    """

    def __init__(self, source: Path | bytes, threads: int) -> None:
        self._source = source
        self._threads = threads
        self._lock = threading.Lock()
        self._session: Any = None

    def __call__(self, x: ArrayT) -> ArrayT:
        session = self.open()
        array = x if isinstance(x, np.ndarray) else x.detach().cpu().numpy()
        (result,) = session.run(None, {session.get_inputs()[0].name: np.ascontiguousarray(array)})
        if isinstance(x, np.ndarray):
            return cast(ArrayT, result)
        import torch

        return torch.from_numpy(result).to(x.device)

    def open(self) -> Any:
        """The session, opened if it is not yet (some 10 ms).

        Raises:
            BundleError: ONNX Runtime cannot load the file.
        """
        with self._lock:
            if self._session is None:
                onnxruntime = import_onnxruntime()
                options = onnxruntime.SessionOptions()
                options.intra_op_num_threads = self._threads
                options.inter_op_num_threads = 1
                options.add_session_config_entry("session.intra_op.allow_spinning", "0")
                source = self._source if isinstance(self._source, bytes) else str(self._source)
                try:
                    self._session = onnxruntime.InferenceSession(
                        source, options, providers=["CPUExecutionProvider"]
                    )
                except Exception as error:  # its kinds have no common base
                    name = source if isinstance(source, str) else "the ONNX graph"
                    raise BundleError(f"{name} cannot be run: {error}") from error
            return self._session


class IdentityNetwork:
    """The head of a task whose answer is the embedding itself: (B, outputs) -> (B, outputs)."""

    def __call__(self, x: ArrayT) -> ArrayT:
        return x


class TorchNetwork:
    """A torch module in eval mode, without gradients, wherever its parameters are."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.module = module.eval()

    def __call__(self, x: ArrayT) -> ArrayT:
        import torch

        device = next((p.device for p in self.module.parameters()), torch.device("cpu"))
        with torch.no_grad():
            if isinstance(x, np.ndarray):
                result = self.module(torch.from_numpy(np.ascontiguousarray(x)).to(device))
                return cast(ArrayT, result.cpu().numpy())
            return cast(ArrayT, self.module(x.to(device)).to(x.device))


def choose_runtime(runtime: Runtime) -> Literal["onnx", "torch"]:
    """Resolves "auto": ONNX Runtime where it is installed, else torch.

    Raises:
        ValueError: an unknown name, or "onnx" without onnxruntime installed.
    """
    installed = importlib.util.find_spec("onnxruntime") is not None
    if runtime == "auto":
        return "onnx" if installed else "torch"
    if runtime not in ("onnx", "torch"):
        raise ValueError(f"runtime: expected 'auto', 'onnx' or 'torch', got {runtime!r}")
    if runtime == "onnx" and not installed:
        raise ValueError("runtime: 'onnx' needs onnxruntime (pip install onnxruntime)")
    return runtime


def check_batch(name: str, x: Any, letters: str, shape: tuple[int, ...]) -> None:
    """Refuses what is no float32 array or tensor of shape (B, *shape).

    Args:
        name: the argument's name, for the message.
        letters: how the leading axes are called in the message, e.g. "B" or "B, 4".
        shape: expected, without the batch axis.

    Raises:
        TypeError: neither a numpy array nor a torch tensor.
        ValueError: another shape or dtype, or an empty batch.
    """
    torch = sys.modules.get("torch")
    if not isinstance(x, np.ndarray) and not (torch and isinstance(x, torch.Tensor)):
        raise TypeError(f"{name}: expected a numpy array or a torch tensor, got {type(x).__name__}")
    got = tuple(x.shape)
    if len(got) != len(shape) + 1 or got[1:] != shape:
        rest = ", ".join(str(size) for size in shape)
        raise ValueError(f"{name}: expected shape ({letters}, {rest}), got {got}")
    if got[0] == 0:
        raise ValueError(f"{name}: expected a batch of at least one, got shape {got}")
    dtype = str(x.dtype).removeprefix("torch.")
    if dtype != "float32":
        raise ValueError(f"{name}: expected dtype float32, got {dtype}")
