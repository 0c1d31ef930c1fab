"""ONNX files and no torch: a backbone, a head and a light model, served through a dead worker.

The files are made here, with numpy and onnx: random features, and least squares on top of them.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from codedinv import CodedModel, CodedServer


def rings(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Points float32 (count, 8) in one of three shells around the origin, and the shell."""
    generator = np.random.default_rng(seed)
    directions = generator.standard_normal((count, 8))
    labels = generator.integers(3, size=count)
    radii = 0.5 + labels + 0.1 * generator.standard_normal(count)
    points = directions / np.linalg.norm(directions, axis=1, keepdims=True) * radii[:, None]
    return points.astype(np.float32), labels


def write(path: Path, *layers: tuple[np.ndarray, str]) -> Path:
    """An ONNX file of layers x -> activation([x, 1] @ weights), for batches of any size."""
    nodes, weights, here = [], [], "x"
    for number, (matrix, activation) in enumerate(layers):
        w, b, sums, there = (f"{name}{number}" for name in ("weight", "bias", "sums", "y"))
        nodes.append(helper.make_node("Gemm", [here, w, b], [sums]))
        nodes.append(helper.make_node(activation, [sums], [there]))
        weights += [numpy_helper.from_array(matrix[:-1], w), numpy_helper.from_array(matrix[-1], b)]
        here = there
    sizes = {"x": len(layers[0][0]) - 1, here: layers[-1][0].shape[1]}
    x, y = (
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", size])
        for name, size in sizes.items()
    )
    graph = helper.make_graph(nodes, path.stem, [x], [y], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    onnx.save(model, path)
    return path


def least_squares(x: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Weights (inputs + 1, 3) of logits."""
    with_one = np.hstack([x, np.ones((len(x), 1), np.float32)])
    targets = 4.0 * np.eye(3, dtype=np.float32)[labels]
    gram = with_one.T @ with_one + 1e-2 * np.eye(with_one.shape[1], dtype=np.float32)
    return np.linalg.solve(gram, with_one.T @ targets).astype(np.float32)


def main() -> None:
    folder = Path(tempfile.mkdtemp(prefix="own-onnx-"))
    x, labels = rings(3000, seed=0)
    features = np.random.default_rng(2).standard_normal((9, 256)).astype(np.float32)
    embeddings = np.tanh(x @ features[:-1] + features[-1])
    few = features[:, :32]  # a light model is a small one
    light_weights = least_squares(np.tanh(x @ few[:-1] + few[-1]), labels)
    backbone = write(folder / "shells.onnx", (features, "Tanh"))
    head = write(folder / "head.onnx", (least_squares(embeddings, labels), "Identity"))
    light = write(folder / "light.onnx", (few, "Tanh"), (light_weights, "Identity"))

    model = CodedModel.from_onnx(backbone, {"label": head}, light=light)
    queries, truth = rings(200, seed=1)
    with CodedServer(model) as server:
        futures = [server.submit(query, deadline=30) for query in queries]
        server.pool.kill(0)  # SIGKILL, while it is at work
        answers = [future.result() for future in futures]
    right = np.mean([a.outputs["label"].argmax() == y for a, y in zip(answers, truth, strict=True)])
    print(f"{model.scheme}: {len(answers)} of {len(queries)} answered, {100 * right:.0f} % right")
    print("torch was imported:", "torch" in sys.modules)


if __name__ == "__main__":
    main()
