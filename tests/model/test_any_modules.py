"""from_modules with networks that codedinv has never seen: served, saved, loaded, rebuilt."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from codedinv import Code, CodedModel, CodedServer
from codedinv.errors import BundleError

FACTORY = """
from torch import nn

CALLED = []

def build(width, outputs=8):
    CALLED.append(width)
    return nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, outputs))

class Zoo:
    @staticmethod
    def head():
        return nn.Linear(8, 3)

def not_a_module():
    return "gotcha"
"""


class Series(nn.Module):
    """(B, T, D) -> (B, 2, D): an embedding that is not flat, of a recurrent network."""

    def __init__(self) -> None:
        super().__init__()
        self.recurrent = nn.GRU(4, 4, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.recurrent(x)[0][:, -2:]


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=2), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3, stride=2)
    )


def flat_head(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, outputs))


KINDS: dict[str, tuple[nn.Module, dict[str, nn.Module], tuple[int, ...]]] = {
    "images": (cnn(), {"label": flat_head(36, 3), "coarse": flat_head(36, 2)}, (3, 16, 16)),
    "vectors": (nn.Linear(6, 8), {"price": nn.Linear(8, 1)}, (6,)),
    "series": (Series(), {"label": flat_head(8, 5)}, (7, 4)),
    "tokens": (
        nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
        {"label": flat_head(40, 11)},
        (5, 8),
    ),
    "the answer itself": (nn.Linear(6, 4), {"label": nn.Identity()}, (6,)),
}


def queries(*shape: int, count: int = 5) -> np.ndarray:
    return np.random.default_rng(1).random((count, *shape), dtype=np.float32)


def made(kind: str, **changes: Any) -> CodedModel:
    backbone, heads, shape = KINDS[kind]
    arguments: dict[str, Any] = {
        "name": "mine", "backbone": backbone, "heads": heads, "anchors_queries": queries(*shape),
    }  # fmt: skip
    return CodedModel.from_modules(**{**arguments, **changes})


@pytest.fixture
def zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module of factories that can be imported, and its name."""
    (tmp_path / "their_zoo.py").write_text(FACTORY)
    monkeypatch.syspath_prepend(tmp_path)
    yield "their_zoo"
    sys.modules.pop("their_zoo", None)


@pytest.mark.parametrize("kind", KINDS)
def test_any_modules_make_a_bundle_that_answers_as_they_do(kind: str, tmp_path: Path) -> None:
    model = made(kind)
    loaded = CodedModel.load(model.save(tmp_path / "mine"), runtime="onnx")
    x = queries(*model.input_shape)
    assert loaded.tasks == model.tasks
    assert (loaded.scheme, loaded.input_shape) == ("uncoded", x.shape[1:])
    embeddings = loaded.embed(x)
    backbone, heads, _ = KINDS[kind]
    with torch.no_grad():
        z = backbone.eval()(torch.from_numpy(x))
        np.testing.assert_allclose(embeddings, z, atol=1e-4)
        for task, head in heads.items():
            np.testing.assert_allclose(loaded.head(embeddings, task), head(z), atol=1e-4)


def test_one_query_shows_enough_of_a_model_without_an_encoder(tmp_path: Path) -> None:
    light, code = nn.Linear(6, 1), Code.uniform(10)
    model = made("vectors", anchors_queries=queries(6, count=1), light=light, code=code)
    loaded = CodedModel.load(model.save(tmp_path / "mine"))
    assert (loaded.scheme, loaded.code.k, len(loaded.anchors.queries)) == ("guided", 10, 1)
    with CodedServer(loaded, workers=2, backend="thread") as server:
        assert len(server.predict_batch(queries(6))) == 5


@pytest.mark.parametrize("kind", KINDS)
def test_any_model_is_served_through_a_killed_worker(kind: str) -> None:
    model = made(kind)
    x = queries(*model.input_shape, count=30)
    with CodedServer(model, workers=2) as server:
        futures = [server.submit(query) for query in x]
        server.pool.kill(0)
        answers = [future.result(60) for future in futures]
        assert all(answer.source == "exact" for answer in answers)
    task = next(iter(model.heads))
    expected = model.head(model.embed(x), task)
    got = np.stack([answer.outputs[task] for answer in answers])
    np.testing.assert_allclose(got, expected, atol=1e-4)


def test_a_bundle_of_graphs_alone_says_why_it_has_no_torch_modules(tmp_path: Path) -> None:
    folder = made("images").save(tmp_path / "mine")
    for attempt in (
        lambda: CodedModel.load(folder, runtime="torch"),
        lambda: CodedModel.load(folder).modules,
    ):
        with pytest.raises(BundleError, match="ONNX graph and no torch module; use"):
            attempt()


@pytest.mark.parametrize("shared_weights", [False, True])
def test_a_bundle_of_graphs_alone_can_be_saved_again(tmp_path: Path, shared_weights: bool) -> None:
    model = made("vectors")
    first = model.save(tmp_path / "first", shared_weights=shared_weights)
    assert (first / "weights.safetensors").exists() == shared_weights
    again = CodedModel.load(CodedModel.load(first).save(tmp_path / "again"))
    assert not (tmp_path / "again" / "weights.safetensors").exists()
    x = queries(6)
    np.testing.assert_allclose(again.embed(x), model.embed(x), atol=1e-5)


def test_weights_that_no_file_has_cannot_be_shared(tmp_path: Path) -> None:
    loaded = CodedModel.load(made("vectors").save(tmp_path / "mine"))
    with pytest.raises(ValueError, match="shared_weights: the model has ONNX graphs alone"):
        loaded.save(tmp_path / "again", shared_weights=True)


def test_a_damaged_weights_file_of_a_shared_bundle_is_found(tmp_path: Path) -> None:
    folder = made("images").save(tmp_path / "mine", shared_weights=True)
    content = bytearray((folder / "weights.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "weights.safetensors").write_bytes(content)
    with pytest.raises(BundleError, match=r"weights\.safetensors is damaged"):
        CodedModel.load(folder)


# ---- architecture


def with_factories(zoo: str) -> CodedModel:
    from importlib import import_module

    module: Any = import_module(zoo)
    model = CodedModel.from_modules(
        name="mine",
        backbone=module.build(5),
        heads={"label": module.Zoo.head()},
        anchors_queries=queries(6),
        architecture={
            "backbone": {"factory": f"{zoo}:build", "arguments": {"width": 5}},
            "head.label": f"{zoo}:Zoo.head",
        },
    )
    module.CALLED.clear()
    return model


def test_a_factory_rebuilds_torch_modules_for_one_who_trusts_it(zoo: str, tmp_path: Path) -> None:
    model = with_factories(zoo)
    folder = model.save(tmp_path / "mine")
    x = queries(6)
    for loaded in (
        CodedModel.load(folder, runtime="torch", trust_factory=True),
        CodedModel.load(folder, trust_factory=True),
    ):
        np.testing.assert_allclose(loaded.embed(x), model.embed(x), atol=1e-5)
        assert isinstance(loaded.modules.backbone[0], nn.Linear)


def test_a_factory_is_neither_imported_nor_called_without_trust(zoo: str, tmp_path: Path) -> None:
    folder = with_factories(zoo).save(tmp_path / "mine")
    sys.modules.pop(zoo)
    model = CodedModel.load(folder, runtime="onnx")
    model.head(model.embed(queries(6)))
    CodedModel.load(model.save(tmp_path / "again"), runtime="onnx")
    for attempt in (lambda: CodedModel.load(folder, runtime="torch"), lambda: model.modules):
        with pytest.raises(BundleError, match=r"their_zoo:build, .*trust_factory=True"):
            attempt()
    assert zoo not in sys.modules


def test_a_bundle_saved_again_without_trust_keeps_factories_and_weights(
    zoo: str, tmp_path: Path
) -> None:
    folder = with_factories(zoo).save(tmp_path / "mine")
    again = CodedModel.load(folder, runtime="onnx").save(tmp_path / "again")
    before = CodedModel.load(folder, runtime="torch", trust_factory=True)
    after = CodedModel.load(again, runtime="torch", trust_factory=True)
    np.testing.assert_array_equal(after.embed(queries(6)), before.embed(queries(6)))


@pytest.mark.parametrize(
    ("entry", "complaint"),
    [
        ("their_zoo.build", "expected 'package.module:callable'"),
        ("../their_zoo:build", "expected 'package.module:callable'"),
        ("__main__:build", "is found in no other process"),
        ({"factory": "their_zoo:build", "arguments": {"width": {1, 2}}}, "plain JSON"),
        ({"factory": "their_zoo:build", "arguments": [5]}, "'arguments'"),
        ({"factory": "their_zoo:build", "argument": {}}, "expected {'factory'"),
        ({"factory": "their_zoo:build", "arguments": {"width": 9}}, "does not rebuild"),
        ({"factory": "their_zoo:build"}, "does not rebuild"),
        ("their_zoo:missing", "does not rebuild"),
        ("their_zoo:not_a_module", "no torch.nn.Module"),
        ("no_such_package:build", "No module named 'no_such_package'"),
        ({"kind": "resnetish"}, "does not rebuild"),
    ],
)
def test_an_architecture_that_does_not_give_the_network_back_is_refused(
    zoo: str, entry: Any, complaint: str
) -> None:
    from importlib import import_module

    module: Any = import_module(zoo)
    with pytest.raises(ValueError, match=complaint):
        CodedModel.from_modules(
            name="mine",
            backbone=module.build(5),
            heads={"label": nn.Linear(8, 3)},
            anchors_queries=queries(6),
            architecture={"backbone": entry},
        )


def test_an_architecture_of_other_outputs_is_refused(zoo: str) -> None:
    backbone = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 8))
    with pytest.raises(ValueError, match="gives other outputs with the same weights"):
        made(
            "vectors",
            backbone=backbone,
            architecture={"backbone": {"factory": f"{zoo}:build", "arguments": {"width": 5}}},
        )


def test_an_architecture_for_a_part_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected some of \['backbone', 'head.price'\]"):
        made("vectors", architecture={"heads": None})


# ---- what is wrong is said before anything is made


class Mixing(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x - x.mean(0, keepdim=True)


class Answering(nn.Module):
    """Gives whatever it is told to."""

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, x: torch.Tensor) -> Any:
        return self.answer(x)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"backbone": Answering(lambda x: (x, x))}, "expected one tensor, got a tuple"),
        ({"backbone": Answering(lambda x: x / 0 * 0)}, "backbone.*NaN or infinity"),
        ({"backbone": Answering(lambda x: x.argmax(1, keepdim=True))}, "float32, got torch.int64"),
        ({"backbone": Answering(lambda x: x[:1])}, r"backbone.*got \(1, 6\)"),
        ({"backbone": Answering(lambda x: x[:, :0])}, r"backbone.*got \(5, 0\)"),
        ({"backbone": Mixing()}, "differently beside others than alone"),
        (
            {"backbone": Mixing(), "anchors_queries": queries(6, count=1)},
            "differently beside others than alone",
        ),
        (
            {
                "encoder": Answering(lambda groups: groups.mean(1, keepdim=True)),
                "anchors_queries": queries(6, count=2),
            },
            "A >= 3",
        ),
        ({"backbone": nn.Embedding(9, 8)}, "does not take float32"),
        ({"backbone": nn.Linear(7, 8)}, "Linear does not take float32 \\(5, 6\\)"),
        ({"heads": {"a": nn.Linear(9, 2)}}, "heads: 'a'.*Linear does not take"),
        ({"heads": {"a": Answering(lambda z: z[:, 0])}}, "heads: 'a' must give .*unsqueeze"),
        ({"heads": {"a": Answering(lambda z: z[..., None])}}, "heads: 'a' must give .*flatten"),
        ({"heads": {}}, "at least one task"),
        ({"anchors_queries": np.zeros((5, 6), np.uint8)}, "expected floats.*scale pixels"),
        ({"anchors_queries": np.zeros((0, 6), np.float32)}, "A >= 1"),
        ({"anchors_queries": np.zeros((5, 0), np.float32)}, "A >= 1"),
        ({"anchors_queries": np.full((5, 6), np.nan, np.float32)}, "finite"),
        ({"scheme": "invertible"}, "encoder: the scheme 'invertible' needs one"),
        ({"scheme": "guided"}, "light: the scheme 'guided'"),
        ({"name": "my model"}, "name"),
    ],
)
def test_what_cannot_be_served_is_refused_in_plain_words(
    changes: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        made("vectors", **changes)


def test_what_is_no_module_is_a_type_error() -> None:
    with pytest.raises(TypeError, match=r"backbone: expected a torch.nn.Module, got function"):
        made("vectors", backbone=lambda x: x)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"heads": nn.Linear(8, 1)}, "heads: expected torch modules by task, .* got a Linear"),
        ({"code": 4}, r"code: expected a Code, such as Code\.uniform\(k=4\), got 4"),
        ({"input_range": 3}, "input_range: expected two numbers, got 3"),
        ({"light": nn.Linear(6, 1), "fusion": {"arrival": 1.0}}, "fusion: .* numbers, got 1.0"),
    ],
)
def test_an_argument_of_another_kind_is_named(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(TypeError, match=complaint):
        made("vectors", **changes)


def test_weights_of_any_layout_and_precision_are_served_in_float32(tmp_path: Path) -> None:
    backbone = cnn().to(memory_format=torch.channels_last).double()
    tied = nn.Sequential(nn.Flatten(), nn.Linear(36, 36), nn.ReLU(), nn.Linear(36, 36))
    tied[3].weight = tied[1].weight
    model = made("images", backbone=backbone, heads={"label": tied})
    assert next(backbone.parameters()).dtype == torch.float64, "the caller's own is left as it is"
    loaded = CodedModel.load(model.save(tmp_path / "mine", shared_weights=True))
    x = queries(3, 16, 16)
    np.testing.assert_allclose(loaded.embed(x), model.embed(x), atol=1e-4)


def test_a_network_that_cannot_be_exported_says_what_to_do(tmp_path: Path) -> None:
    class Eigen(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.linalg.eigvalsh(x[:, :, None] * x[:, None])

    model = made("vectors", backbone=Eigen(), heads={"label": nn.Linear(6, 2)})
    with pytest.raises(BundleError, match=r"query -> embedding.*from_onnx"):
        model.save(tmp_path / "mine")
    assert not (tmp_path / "mine").exists()


def test_a_batch_size_baked_into_the_graph_is_found(tmp_path: Path) -> None:
    baked = Answering(lambda x: x + torch.zeros(len(x), 6))
    model = made("vectors", backbone=baked, heads={"label": nn.Linear(6, 2)})
    with pytest.raises(BundleError, match=r"(?s)batch of 3.*a tensor of the batch's size"):
        model.save(tmp_path / "mine")


# ---- coded or not


def untrained(**changes: Any) -> CodedModel:
    encoder = Answering(lambda group: group.mean(1, keepdim=True))
    return made("images", encoder=encoder, code=Code.uniform(4), **changes)


LIGHT = nn.Sequential(nn.Flatten(), nn.Linear(768, 5))


def test_an_encoder_that_nobody_has_measured_is_not_used_by_default() -> None:
    with pytest.warns(UserWarning, match="'mine' is served by scheme 'uncoded', not by 'invert"):
        server = CodedServer(untrained(), workers=2, backend="thread")
    with server:
        assert server.scheme.name == "uncoded"
        assert server.predict(queries(3, 16, 16)[0]).source == "exact"


def test_with_a_light_model_it_is_guided_instead() -> None:
    with pytest.warns(UserWarning, match="served by scheme 'guided'.*never measured"):
        server = CodedServer(untrained(light=LIGHT), workers=2, backend="thread")
    with server:
        assert server.scheme.name == "guided"


def test_asked_for_it_is_used_and_warned_of() -> None:
    with pytest.warns(UserWarning, match="'invertible' as asked for, though its A_d"):
        server = CodedServer(untrained(), workers=2, backend="thread", scheme="invertible")
    with server:
        assert server.scheme.name == "invertible"


@pytest.mark.parametrize(
    ("metrics", "scheme"),
    [
        ({"A_d": 80.0}, "invertible"),
        ({"A_d": 80.0, "floor": 80.0}, "invertible"),
        ({"A_d": 79.9, "floor": 80.0}, "uncoded"),
        ({"A_d": 79.9, "controls": {"light": 80.0}}, "uncoded"),
        ({"A_d": 79.9, "floor": 70.0, "controls": {"light": 80.0}}, "invertible"),
        ({"A_d": None}, "uncoded"),
        ({"A_d": float("nan")}, "uncoded"),
        ({"A_n": 99.0}, "uncoded"),
        (None, "uncoded"),
    ],
)
def test_the_bundles_own_floor_decides(metrics: Any, scheme: str) -> None:
    assert untrained(metadata={"metrics": metrics}).default_scheme == scheme


def test_a_model_that_is_worth_it_or_never_coded_is_served_without_a_word() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for model in (untrained(metadata={"metrics": {"A_d": 80.0}}), made("vectors")):
            CodedServer(model, workers=2, backend="thread").close()


# ---- workers


def test_workers_that_would_need_torch_modules_are_refused_before_they_start(zoo: str) -> None:
    for model in (made("vectors"), with_factories(zoo)):
        with pytest.raises(ValueError, match=r"cannot make torch modules of 'mine'.*='onnx'"):
            CodedServer(model, workers=1, runtime="torch")


# ---- what is no model


def test_a_module_given_to_a_server_is_answered_with_the_line_to_write() -> None:
    with pytest.raises(TypeError, match=r'CodedModel\.from_modules\(name="mine", backbone=module'):
        CodedServer(nn.Linear(2, 2))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"expected a CodedModel, a bundled name.*got int"):
        CodedServer(3)  # type: ignore[arg-type]
