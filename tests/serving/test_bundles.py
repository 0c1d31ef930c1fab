"""CodedServer with a model from its bundle, as users have it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from codedinv import CodedModel, CodedServer, Policy
from tests.serving.helpers import next_workers

ROOT = Path(__file__).parents[2]


def test_a_bundles_folder_is_served_and_reconstructs_what_its_model_would(
    small_bundle: Path,
) -> None:
    model = CodedModel.load(small_bundle)
    queries = np.random.default_rng(0).random((4, *model.input_shape), np.float32)
    embeddings = model.embed(queries)
    parity = model.embed(model.encode(queries[np.newaxis])[0])[0]
    with CodedServer(str(small_bundle), policy=Policy(hang_timeout_s=60)) as server:
        server.pool.hang(next_workers(server, 3)[2])
        predictions = server.predict(queries)
    assert [p.source for p in predictions] == ["exact", "exact", "reconstructed", "exact"]
    results = {0: embeddings[0], 1: embeddings[1], 3: embeddings[3], 4: parity}
    embeddings[2] = model.reconstruct(results)[2]
    for task in model.heads:
        outputs = np.stack([p.outputs[task] for p in predictions])
        np.testing.assert_allclose(outputs, model.head(embeddings, task), atol=1e-3)


def test_a_front_end_on_onnx_runtime_never_imports_torch(small_bundle: Path) -> None:
    script = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import numpy as np
import pytest
from codedinv import CodedServer, Policy
with CodedServer({str(small_bundle)!r}, policy=Policy(always_encode=True)) as server:
    predictions = server.predict(np.zeros((9, 1, 28, 28), np.float32))
print(len(predictions), "torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.split() == ["9", "False"], done.stderr


def test_a_bundle_refuses_queries_outside_of_the_range_it_states() -> None:
    """One scaled by 1e8 would spoil what is reconstructed of its neighbours."""
    with CodedServer("fashion-mnist", workers=1, backend="thread") as server:
        image = np.zeros((1, 28, 28), np.float32)
        with pytest.raises(ValueError, match=r"0\.0.*1\.0"):
            server.submit(image + 1e8)
        with pytest.raises(ValueError, match=r"0\.0.*1\.0"):
            server.submit(image - 0.5)
        assert server.predict(image).source == "exact"  # type: ignore[union-attr]
