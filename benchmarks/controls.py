"""What the backbone and the encoder are worth: three controls beside the bundled accuracies.

    python benchmarks/controls.py [--data FOLDER]

- head alone: the bundles' head, trained by their recipe on raw queries with no backbone. What is
  above it is the backbone's.
- plain sum: A_d with sum_j c_ij x_j as parity query. What is above it is the encoder's. A backbone
  that co-training made affine would show here: its plain sum would be as good as its encoder.
- affine fit: the share of the embeddings' variance, on unseen images, that the best affine map of
  the pixels explains. 1 means that the backbone computes nothing but such a map.

Writes benchmarks/receipts/controls.json.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from codedinv import CodedModel
from codedinv.data import load_fashion_mnist, to_queries
from codedinv.experiments.accuracy import evaluate
from codedinv.experiments.receipts import write_receipt
from codedinv.training import fit_classifier, load_recipe
from codedinv.training.classifier import accuracy

HERE = Path(__file__).parent
MODELS = ("fashion-mnist", "fashion-mnist-k10")


class PlainSum:
    """A model whose encoder is the code's weighted sum of the queries."""

    def __init__(self, model: CodedModel) -> None:
        self._model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def encode(self, queries: np.ndarray) -> np.ndarray:
        coefficients = self._model.code.coefficients
        return np.einsum("rk,gk...->gr...", coefficients, queries).astype(np.float32)


def affine_share(queries: np.ndarray, embeddings: np.ndarray) -> float:
    """R^2 on the last quarter of the images of the affine map fitted to the others."""
    x = np.c_[queries.reshape(len(queries), -1), np.ones(len(queries))].astype(np.float64)
    z = embeddings.reshape(len(embeddings), -1).astype(np.float64)
    fitted = len(x) * 3 // 4
    gram = x[:fitted].T @ x[:fitted] + 0.1 * np.eye(x.shape[1])
    weights = np.linalg.solve(gram, x[:fitted].T @ z[:fitted])
    left = ((z[fitted:] - x[fitted:] @ weights) ** 2).sum()
    return float(1 - left / ((z[fitted:] - z[:fitted].mean(0)) ** 2).sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of the Fashion-MNIST IDX files")
    folder = parser.parse_args().data
    images, labels = load_fashion_mnist("test", folder)
    queries = to_queries(images)
    with tempfile.TemporaryDirectory() as out:
        recipe = load_recipe(HERE / "head-alone.toml")
        head_alone = accuracy(*fit_classifier(recipe, Path(out), folder), images, labels)
    models = {}
    for name in MODELS:
        model = CodedModel.load(name)
        measured = evaluate(PlainSum(model), queries, labels)  # type: ignore[arg-type]
        models[name] = {
            "A_n": measured.normal.mean,
            "A_d_plain_sum": measured.degraded.mean,
            "affine_share": affine_share(
                queries, np.concatenate([model.embed(part) for part in np.split(queries, 10)])
            ),
        }
    result = {"head_alone_A_n": head_alone, "models": models}
    write_receipt(HERE / "receipts" / "controls.json", "python benchmarks/controls.py", result)
    print(result)


if __name__ == "__main__":
    main()
