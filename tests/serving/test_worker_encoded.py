"""The encoder at the parity worker: the same answers, with nothing encoded at the front end."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from codedinv import CodedModel, CodedServer, Policy
from codedinv.schemes import worker_encoded
from codedinv.schemes.scheme import Array
from codedinv.verification import ExactConsistency
from codedinv.workers import BackboneSpec, ProcessPool, Result
from codedinv.workers.backbone import ParityBackbone
from tests.serving.helpers import next_workers, wait_until
from tests.serving.linear_model import LinearModel
from tests.workers.conftest import listen


def test_workers_rebuild_a_lost_answer_from_the_queries_themselves(small_bundle: Path) -> None:
    model = CodedModel.load(small_bundle)
    queries = np.random.default_rng(0).random((4, *model.input_shape), np.float32)
    embeddings = model.embed(queries)
    parity = model.embed(model.encode(queries[np.newaxis])[0])[0]
    policy = Policy(hang_timeout_s=60)
    with CodedServer(small_bundle, scheme="worker-encoded", policy=policy) as server:
        server.pool.hang(next_workers(server, 3)[2])
        predictions = server.predict(queries)
    assert [p.source for p in predictions] == ["exact", "exact", "reconstructed", "exact"]
    embeddings[2] = model.reconstruct(
        {0: embeddings[0], 1: embeddings[1], 3: embeddings[3], 4: parity}
    )[2]
    for task in model.heads:
        outputs = np.stack([p.outputs[task] for p in predictions])
        np.testing.assert_allclose(outputs, model.head(embeddings, task), atol=1e-3)


def test_the_front_end_only_copies() -> None:
    """Its encoder is never called, and every parity slot carries all of the group's queries."""
    model = LinearModel(k=3, r=2)
    scheme = worker_encoded(model)
    queries = np.random.default_rng(0).random((5, 3, *model.input_shape), np.float32)
    carried = scheme.encode(queries)
    assert carried.shape == (5, 2, 3, *model.input_shape)
    np.testing.assert_array_equal(carried[:, 0], queries)
    np.testing.assert_array_equal(carried[:, 1], queries)
    assert scheme.plan.models == ("backbone",) * 3 + ("parity-0", "parity-1")


@pytest.mark.parametrize("r", [1, 2])
def test_each_parity_model_makes_its_own_parity(r: int) -> None:
    """With exact parities of a linear model, two lost results come back as they were."""
    model = LinearModel(k=3, r=r)
    queries = model.queries(3)
    policy = Policy(hang_timeout_s=60)
    with CodedServer(model, scheme="worker-encoded", backend="thread", policy=policy) as server:
        for worker in next_workers(server, r):
            server.pool.hang(worker)
        predictions = server.predict(queries)
    assert [p.source for p in predictions].count("reconstructed") == r
    for task in model.heads:
        outputs = np.stack([p.outputs[task] for p in predictions])
        np.testing.assert_allclose(outputs, model.head(model.embed(queries), task), atol=1e-3)


def test_a_partial_group_is_filled_with_anchors(small_bundle: Path) -> None:
    policy = Policy(always_encode=True, group_wait_s=0.01)
    with CodedServer(small_bundle, scheme="worker-encoded", policy=policy) as server:
        server.predict(np.zeros((2, 1, 28, 28), np.float32))
        wait_until(lambda: server.stats().parity_queries == 1)
        stats = server.stats()
    assert (stats.answered["exact"], stats.task_errors, stats.encode_errors) == (2, 0, 0)


def test_a_liar_among_them_is_found_as_with_the_encoder_at_the_front_end() -> None:
    model = LinearModel(k=2, r=2)
    model.consistency = ExactConsistency(model.code)  # type: ignore[attr-defined]
    policy = Policy(verify=True, release="grace", grace_s=60.0, group_wait_s=60.0)
    with CodedServer(model, scheme="worker-encoded", backend="thread", policy=policy) as server:
        server.predict(model.queries(16))
        wait_until(lambda: server.stats().groups_checked == 8)
        assert server.stats().suspected_corruption == 0
        server.pool.corrupt(1, 1.0)
        server.predict(model.queries(16))
        wait_until(lambda: server.stats().corrupt > 0)


def test_a_worker_shares_one_backbone_among_its_models(small_bundle: Path) -> None:
    """Memory of a worker must not double for its parity model."""
    from codedinv.workers.backbone import load_all

    spec = BackboneSpec.of(small_bundle, (1, 28, 28), CodedModel.load(small_bundle).embedding_shape)
    loaded = load_all({"parity-0": parity_of(spec, 4), "backbone": spec})
    parity = loaded["parity-0"]
    assert isinstance(parity, ParityBackbone)
    assert parity.backbone is loaded["backbone"]


def parity_of(spec: BackboneSpec, k: int) -> BackboneSpec:
    return BackboneSpec.of(spec.folder, (k, *spec.query_shape), spec.embedding_shape, parity=0)


def test_the_encoders_file_is_verified_too(small_bundle: Path, tmp_path: Path) -> None:
    import shutil

    from codedinv.errors import BundleError

    folder = tmp_path / "bundle"
    shutil.copytree(small_bundle, folder)
    embedding = CodedModel.load(folder).embedding_shape
    spec = parity_of(BackboneSpec.of(folder, (1, 28, 28), embedding), 4)
    (folder / "encoder.onnx").write_bytes(b"another one")
    with pytest.raises(BundleError, match=r"encoder\.onnx: expected sha256"):
        spec.load()


@pytest.mark.parametrize("in_flight", [1, 32])  # inline, and through shared memory
def test_models_of_different_queries_share_a_wire(small_bundle: Path, in_flight: int) -> None:
    spec = BackboneSpec.of(small_bundle, (1, 28, 28), CodedModel.load(small_bundle).embedding_shape)
    pool = ProcessPool({"backbone": spec, "parity-0": parity_of(spec, 4)}, 1, in_flight)
    try:
        pool.start(0, 1)
        listen(pool, 1)
        model = CodedModel.load(small_bundle)
        queries = np.random.default_rng(1).random((4, 1, 28, 28), np.float32)
        pool.send(0, 1, 7, "parity-0", queries)
        pool.send(0, 1, 8, "backbone", queries[0])
        first, second = listen(pool, 2)
        assert isinstance(first, Result)
        assert isinstance(second, Result)
        parity = model.embed(model.encode(queries[np.newaxis])[0])[0]
        np.testing.assert_allclose(first.embedding, parity, atol=1e-4)
        np.testing.assert_allclose(second.embedding, model.embed(queries[:1])[0], atol=1e-4)
    finally:
        pool.close(5.0)


def test_an_encoder_that_gives_no_finite_parity_fails_its_task_alone() -> None:
    def broken(queries: Array) -> Array:
        return np.full((len(queries), 1, *queries.shape[2:]), np.nan, np.float32)

    def never(x: Array) -> Array:
        raise AssertionError("the backbone must not see it")

    with pytest.raises(ValueError, match="NaN or infinite"):
        ParityBackbone(never, broken, 0)(np.zeros((1, 4, 1, 28, 28), np.float32))


def test_an_impostors_backbone_is_run_behind_the_encoder(small_bundle: Path) -> None:
    """`impersonate` swaps weights, as a bad deploy would: also for parity queries."""
    policy = Policy(always_encode=True)
    with CodedServer(small_bundle, scheme="worker-encoded", policy=policy) as server:
        for worker in range(5):
            server.pool.impersonate(worker, small_bundle)
        server.predict(np.zeros((8, 1, 28, 28), np.float32))
        assert server.stats().task_errors == 0


def test_a_server_reloads_from_one_place_of_encoding_to_the_other(small_bundle: Path) -> None:
    from codedinv.schemes import invertible

    model = CodedModel.load(small_bundle)
    with CodedServer(model, scheme=worker_encoded(model)) as server:
        server.reload(model, scheme=invertible(model))
        server.reload(model, scheme=worker_encoded(model))
        server.predict(np.zeros((8, 1, 28, 28), np.float32))
        assert server.stats().reloads == 2
        assert server.stats().task_errors == 0


def test_servers_of_other_makers_have_no_encoder(small_bundle: Path) -> None:
    with pytest.raises(
        ValueError, match=r"run the backbone alone.*'invertible' encodes at the front"
    ):
        CodedServer(small_bundle, workers=["http://127.0.0.1:9"], scheme="worker-encoded")
