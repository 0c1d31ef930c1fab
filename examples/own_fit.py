"""From a network to a bundle by one command, for four kinds of network, each served through a kill.

python examples/own_fit.py resnet    # or vit, tabular (pip install scikit-learn), onnx

Data are tiny, so that it takes a minute or two; what it recommends holds for them alone.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from models import toy, vit
from torch import nn

from codedinv import CodedModel, CodedServer
from codedinv.model.export import to_onnx


def corners(path: Path) -> None:
    """900 images with a square in one of four corners, 300 of them for tests."""
    x, y = (array.numpy() for array in toy.corners(900, seed=0))
    np.savez(path, x_train=x[:600], y_train=y[:600], x_test=x[600:], y_test=y[600:])


def digits(path: Path) -> None:
    """scikit-learn's handwritten digits as tables of 64 columns."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    x, y = x[order].astype(np.float32), y[order]
    np.savez(path, x_train=x[:1200], y_train=y[:1200], x_test=x[1200:], y_test=y[1200:])


def onnx_file(path: Path) -> str:
    """A trained vision transformer, backbone and head in one ONNX file."""
    torch.manual_seed(0)
    backbone, heads = vit.build(classes=4)
    whole = nn.Sequential(backbone, heads["label"])
    x, y = toy.corners(600, seed=0)
    toy.train(whole, x, y, steps=150)
    path.write_bytes(to_onnx(whole, x[:4], "x", "y")[0])
    return str(path)


def main() -> None:
    kind = sys.argv[1] if len(sys.argv) > 1 else "resnet"
    folder = Path(sys.argv[2] if len(sys.argv) > 2 else tempfile.mkdtemp(prefix="own-fit-"))
    data, out = folder / "data.npz", folder / "fitted"
    digits(data) if kind == "tabular" else corners(data)
    model, *train = {
        "resnet": ("models.resnet:build", "--epochs", "4"),
        "vit": ("models.vit:build", "--epochs", "12"),
        "tabular": ("models.digits:build", "--epochs", "12"),
        "onnx": (onnx_file(folder / "vit.onnx") if kind == "onnx" else "",),
    }[kind]
    command = ["fit", model, *train, "--data", data, "--k", "2,4", "--out", out, "--name", kind]
    subprocess.run(
        [sys.executable, "-m", "codedinv", *command], cwd=Path(__file__).parent, check=True
    )

    with np.load(data) as arrays:
        queries, labels = arrays["x_test"][:200], arrays["y_test"][:200]
    with CodedServer(CodedModel.load(out / "bundle"), workers=3) as server:
        futures = [server.submit(query, deadline=30) for query in queries]
        server.pool.kill(0)  # SIGKILL, while it is at work
        answers = [future.result() for future in futures]
    guesses = np.stack([next(iter(a.outputs.values())) for a in answers]).argmax(1)
    right = 100 * (guesses == labels).mean()
    print(f"{kind}: {len(answers)} of {len(queries)} answered, {right:.0f} % right")


if __name__ == "__main__":
    main()
