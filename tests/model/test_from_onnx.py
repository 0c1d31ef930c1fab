"""from_onnx: ONNX files that others have made, served without torch."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from codedinv import Code, CodedModel, CodedServer
from codedinv.errors import BundleError

FLOAT = TensorProto.FLOAT
X = np.random.default_rng(0).random((5, 6), dtype=np.float32)
W = np.random.default_rng(1).standard_normal((6, 8)).astype(np.float32)
V = np.random.default_rng(2).standard_normal((8, 3)).astype(np.float32)


def graph(
    weight: np.ndarray,
    inputs: str = "x",
    outputs: str = "y",
    batch: int | str = "N",
    kind: int = FLOAT,
    opset: int = 17,
    nodes: list[Any] | None = None,
    shape: tuple[int | str, ...] | None = None,
    result: tuple[int | str, ...] | None = None,
) -> onnx.ModelProto:
    """x -> x @ weight, or what else it is told to be."""
    size = (weight.shape[0],) if shape is None else shape
    rest = (weight.shape[1],) if result is None else result
    made = helper.make_graph(
        nodes or [helper.make_node("MatMul", [inputs, "weight"], [outputs])],
        "graph",
        [helper.make_tensor_value_info(inputs, kind, (batch, *size))],
        [helper.make_tensor_value_info(outputs, kind, (batch, *rest))],
        [numpy_helper.from_array(weight, "weight")],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)])
    model.ir_version = 8
    return model


def f(**changes: Any) -> bytes:
    return graph(W, **changes).SerializeToString()


def g(**changes: Any) -> bytes:
    return graph(V, **changes).SerializeToString()


def written(folder: Path, name: str, content: bytes) -> Path:
    (folder / name).write_bytes(content)
    return folder / name


def test_files_make_a_model_that_is_saved_loaded_and_answers_as_they_do(tmp_path: Path) -> None:
    model = CodedModel.from_onnx(
        written(tmp_path, "mine.onnx", f()), {"label": written(tmp_path, "head.onnx", g())}
    )
    assert (model.name, model.scheme, model.tasks) == ("mine", "uncoded", {"label": 3})
    assert model.metadata["macs"] == {"backbone": 48, "head": {"label": 24}}
    assert model.metadata["parameters"] == {"backbone": 48, "head": {"label": 24}}
    loaded = CodedModel.load(model.save(tmp_path / "bundle"))
    again = CodedModel.load(loaded.save(tmp_path / "again"))
    for one in (model, loaded, again):
        np.testing.assert_allclose(one.head(one.embed(X)), X @ W @ V, rtol=1e-4)


def test_a_whole_model_in_one_file_is_served_by_its_path(tmp_path: Path) -> None:
    path = written(tmp_path, "x.onnx", f())
    for model in (path, str(path)):
        with CodedServer(model, workers=2) as server:
            futures = [server.submit(x) for x in X]
            server.pool.kill(0)
            outputs = [future.result(60).outputs["output"] for future in futures]
        np.testing.assert_allclose(outputs, X @ W, rtol=1e-4)


def test_torch_is_not_imported(tmp_path: Path) -> None:
    path = written(tmp_path, "x.onnx", f())
    program = (
        "import sys, numpy as np\n"
        "from codedinv import CodedModel, CodedServer\n"
        f"model = CodedModel.from_onnx({str(path)!r})\n"
        f"model = CodedModel.load(model.save({str(tmp_path / 'bundle')!r}))\n"
        "with CodedServer(model, workers=1) as server:\n"
        "    server.predict(np.zeros((3, 6), np.float32))\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr


def test_a_light_file_makes_it_guided(tmp_path: Path) -> None:
    model = CodedModel.from_onnx(f(), {"label": g()}, name="lit", light=graph(
        W[:, :3]).SerializeToString())  # fmt: skip
    assert model.scheme == "guided"
    assert model.light is not None
    with CodedServer(model, workers=3, backend="thread") as server:
        assert server.predict(X[0]).source == "exact"
    loaded = CodedModel.load(model.save(tmp_path / "lit"))
    assert loaded.light is not None
    np.testing.assert_allclose(loaded.light(X)["label"], X @ W[:, :3], rtol=1e-4)


def test_an_encoder_file_makes_it_coded() -> None:
    mean = helper.make_node("ReduceMean", ["x"], ["y"], axes=[1], keepdims=1)
    encoder = graph(W, nodes=[mean], shape=(4, 6), result=(1, 6)).SerializeToString()
    model = CodedModel.from_onnx(
        f(), {"label": g()}, name="coded", code=Code.uniform(4), encoder=encoder,
        anchors_queries=X, metadata={"metrics": {"A_d": 90.0}},
    )  # fmt: skip
    assert model.default_scheme == "invertible"
    with CodedServer(model, backend="thread") as server:
        server.pool.hang(0)
        answers = [future.result(60) for future in [server.submit(x) for x in X[:4]]]
        assert "reconstructed" in {answer.source for answer in answers}
    got = np.stack([answer.outputs["label"] for answer in answers])
    np.testing.assert_allclose(got, X[:4] @ W @ V, atol=1e-3)


def test_an_embedding_need_not_be_flat(tmp_path: Path) -> None:
    shape = numpy_helper.from_array(np.array([0, 2, 3]), "shape")
    model = graph(W, nodes=[helper.make_node("Reshape", ["x", "shape"], ["y"])], result=(2, 3))
    model.graph.initializer.append(shape)
    head = graph(W, nodes=[helper.make_node("Flatten", ["x"], ["y"])], shape=(2, 3), result=(6,))
    made = CodedModel.from_onnx(
        model.SerializeToString(), {"label": head.SerializeToString()}, name="folded"
    )
    assert made.embedding_shape == (2, 3)
    np.testing.assert_array_equal(made.head(made.embed(X)), X)


def test_weights_in_files_beside_it_are_taken_in(tmp_path: Path) -> None:
    path = tmp_path / "big.onnx"
    onnx.save_model(
        onnx.load_from_string(f()), path, save_as_external_data=True, location="big.data",
        size_threshold=0,
    )  # fmt: skip
    model = CodedModel.from_onnx(path)
    with pytest.raises(BundleError, match="give its path, not bytes"):
        CodedModel.from_onnx(path.read_bytes(), name="big")
    (tmp_path / "big.data").unlink()
    loaded = CodedModel.load(model.save(tmp_path / "bundle"))
    np.testing.assert_allclose(loaded.embed(X), X @ W, rtol=1e-4)
    with pytest.raises(BundleError, match=r"backbone: .*big.onnx is no valid ONNX file"):
        CodedModel.from_onnx(path)


@pytest.mark.parametrize(
    ("inputs", "outputs"),
    [("embedding", "query"), ("query", "embedding"), ("weight_0", "y"), ("a/b:0", "c d")],
)
def test_names_of_tensors_may_be_any(inputs: str, outputs: str, tmp_path: Path) -> None:
    model = CodedModel.from_onnx(f(inputs=inputs, outputs=outputs), name="named")
    saved = onnx.load(model.save(tmp_path / "named") / "backbone.onnx")
    assert [saved.graph.input[0].name, saved.graph.output[0].name] == ["query", "embedding"]
    np.testing.assert_allclose(model.embed(X), X @ W, rtol=1e-4)


def test_a_tensor_within_that_has_a_bundles_name_makes_way() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "weight"], ["embedding"]),
        helper.make_node("Relu", ["embedding"], ["query"]),
        helper.make_node("Neg", ["query"], ["y"]),
    ]
    model = CodedModel.from_onnx(f(nodes=nodes), name="within")
    np.testing.assert_allclose(model.embed(X), -np.maximum(X @ W, 0), rtol=1e-4)


def test_old_files_that_list_their_weights_as_inputs_are_taken() -> None:
    model = onnx.load_from_string(f())
    model.graph.input.append(helper.make_tensor_value_info("weight", FLOAT, W.shape))
    made = CodedModel.from_onnx(model.SerializeToString(), name="old")
    np.testing.assert_allclose(made.embed(X), X @ W, rtol=1e-4)


def nan() -> list[Any]:
    return [
        helper.make_node("Sub", ["x", "x"], ["zero"]),
        helper.make_node("Div", ["zero", "zero"], ["y"]),
    ]


def mixing() -> list[Any]:
    return [
        helper.make_node("ReduceMean", ["x"], ["mean"], axes=[0], keepdims=1),
        helper.make_node("Sub", ["x", "mean"], ["y"]),
    ]


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: {"backbone": f(batch=1)}, r"'x' has a batch axis of fixed size 1; export it with"),
        (lambda: {"backbone": f(kind=TensorProto.INT64)}, "expected a float32 input, .*INT64"),
        (lambda: {"backbone": f(kind=TensorProto.DOUBLE)}, "expected a float32 input, .*DOUBLE"),
        (lambda: {"backbone": f(nodes=nan(), result=(6,))}, "backbone: NaN or infinity"),
        (
            lambda: {"backbone": f(nodes=mixing(), result=(6,)), "anchors_queries": X},
            "differently beside",
        ),
        (lambda: {"backbone": f(shape=("T",))}, "leaves the size of a query open; give some"),
        (lambda: {"anchors_queries": X[:, :4]}, r"anchors_queries: expected \(A, \*\(6,\)\)"),
        (lambda: {"encoder": f(), "anchors_queries": X[:2]}, "A >= 3"),
        (
            lambda: {"backbone": f(nodes=mixing(), result=(6,)), "anchors_queries": X[:1]},
            "differently beside",
        ),
        (lambda: {"anchors_queries": X.astype(int)}, "expected floats"),
        (lambda: {"anchors_queries": X * np.inf}, "finite"),
        (lambda: {"heads": {"label": f()}}, "heads: 'label': it does not take float32"),
        (lambda: {"heads": {}}, "heads: expected at least one task"),
        (lambda: {"heads": {"a/b": g()}}, "heads: task names"),
        (lambda: {"light": g()}, "light: it does not take"),
        (lambda: {"light": f()}, r"light: expected \(1, 3\), the outputs of all tasks"),
        (lambda: {"encoder": f()}, "anchors_queries: a model with an encoder needs 3"),
        (lambda: {"encoder": f(), "anchors_queries": X}, "encoder: "),
        (lambda: {"name": None}, "name: expected one"),
        (lambda: {"name": "../mine"}, "name: expected at most"),
        (lambda: {"scheme": "guided"}, "light: the scheme 'guided'"),
        (lambda: {"scheme": "invertible"}, "encoder: the scheme 'invertible'"),
    ],
)
def test_what_cannot_be_served_is_refused_in_plain_words(
    make: Callable[[], dict[str, Any]], complaint: str
) -> None:
    arguments = {"backbone": f(), "heads": {"label": g()}, "name": "mine", **make()}
    with pytest.raises(ValueError, match=complaint):
        CodedModel.from_onnx(**arguments)


def test_heads_that_are_not_by_task_are_named() -> None:
    with pytest.raises(TypeError, match=r"heads: expected ONNX files by task, .* got 'head.onnx'"):
        CodedModel.from_onnx(f(), "head.onnx", name="mine")  # type: ignore[arg-type]


def test_several_inputs_or_outputs_are_named() -> None:
    two = onnx.load_from_string(f())
    two.graph.input.append(helper.make_tensor_value_info("mask", FLOAT, ("N", 6)))
    with pytest.raises(ValueError, match=r"expected one input, got \['x', 'mask'\]; cut"):
        CodedModel.from_onnx(two.SerializeToString(), name="two")


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "valid ONNX"),
        (b"PK\x03\x04 no ONNX", "valid ONNX"),
        (f(opset=99), "."),
    ],
    ids=["empty", "foreign", "opset of the future"],
)
def test_what_is_no_onnx_or_too_new_is_refused(content: bytes, complaint: str) -> None:
    with pytest.raises((BundleError, ValueError), match=f"backbone: .*{complaint}"):
        CodedModel.from_onnx(content, name="bad")


def test_a_path_that_is_not_there_and_a_name_that_cannot_be_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"backbone: no ONNX file '.*missing.onnx'"):
        CodedServer(tmp_path / "missing.onnx")
    with pytest.raises(ValueError, match=r"name: .*got 'my model'"):
        CodedModel.from_onnx(written(tmp_path, "my model.onnx", f()))


def test_a_file_that_changed_since_loading_is_not_saved_as_the_models(tmp_path: Path) -> None:
    folder = CodedModel.from_onnx(f(), name="mine").save(tmp_path / "mine")
    loaded = CodedModel.load(folder)
    CodedModel.from_onnx(graph(W + 1).SerializeToString(), name="mine").save(folder)
    with pytest.raises(BundleError, match=r"backbone\.onnx is damaged, or was replaced"):
        loaded.save(tmp_path / "copy")
