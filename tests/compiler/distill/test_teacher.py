"""Teachers behind their port: a local engine, a core that is asked in batches, and what is no teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import pytest
from onnx import helper
from onnx.reference import ReferenceEvaluator

from compiler.distill.teacher import CoreTeacher, LocalTeacher, ToolchainTeacher
from compiler.distill.toolchain_models import Directory
from compiler.recipe.distill_section import Factory
from penstock.errors import CompileError, InvalidInput
from penstock.runtime import EngineOptions, load_engine
from penstock.sdk.call import InferResult
from penstock.sdk.client import Client
from penstock.wire.inference import ModelMetadata
from penstock.wire.tensors import Array, TensorSpec
from tests.compiler.distill.conftest import Digits
from tests.factories import onnx_model

X = TensorSpec(name="x", datatype="FP32", shape=(-1, 4))


def unheard(share: float, note: str) -> None:
    pass


@dataclass
class FakeClient:
    """What ``CoreTeacher`` uses of a client; ``versions`` are what its answers say, one after another."""

    outputs: tuple[TensorSpec, ...] = (TensorSpec(name="logits", datatype="FP32", shape=(-1, 4)),)
    versions: list[str] = field(default_factory=lambda: ["v1"])
    served_by: str = ""
    rows: list[int] = field(default_factory=list)

    def metadata(self, model: str, *, version: str = "") -> ModelMetadata:
        return ModelMetadata(name=model, versions=("v1",), platform="onnx", inputs=(X,), outputs=self.outputs)

    def infer(self, model: str, inputs: Mapping[str, Array], **options: Any) -> InferResult:
        self.rows.append(len(inputs["x"]))
        version = self.versions[min(len(self.rows), len(self.versions)) - 1]
        parameters = {"served_by": self.served_by} if self.served_by else {}
        return InferResult(outputs={"logits": inputs["x"] * 2}, model=model, version=version, parameters=parameters)


def core(client: FakeClient, **options: str) -> CoreTeacher:
    return CoreTeacher(cast(Client, client), "m", **options)


def test_an_engine_answers_as_the_reference_does(digits: Digits) -> None:
    teacher = LocalTeacher(load_engine("onnx", digits.teacher, EngineOptions()), content="sha256:a")
    x = digits.splits["test"].inputs["x"][:70]
    shares: list[float] = []
    answers = teacher.answer({"x": x}, lambda share, note: shares.append(share))
    (expected,) = ReferenceEvaluator(str(digits.teacher)).run(None, {"x": x})
    np.testing.assert_allclose(answers, expected, rtol=1e-3, atol=1e-3)
    assert shares[-1] == 1.0
    assert (
        teacher.fingerprint
        != LocalTeacher(load_engine("onnx", digits.teacher, EngineOptions()), content="b").fingerprint
    )


def test_a_core_is_asked_in_small_batches() -> None:
    client = FakeClient()
    x = np.arange(280, dtype=np.float32).reshape(70, 4)
    np.testing.assert_array_equal(core(client).answer({"x": x}, unheard), x * 2)
    assert client.rows == [32, 32, 6]


def test_two_versions_are_two_teachers() -> None:
    moved = core(FakeClient(versions=["v1", "v2"]))
    with pytest.raises(CompileError, match="answered as m:v1 and then as m:v2.*name a version"):
        moved.answer({"x": np.zeros((40, 4), np.float32)}, unheard)
    assert core(FakeClient()).fingerprint != core(FakeClient(), version="v1").fingerprint


@pytest.mark.parametrize("served_by", ["edge", "mixed"])
def test_an_agents_own_answers_teach_nobody(served_by: str) -> None:
    with pytest.raises(InvalidInput, match="this is an agent"):
        core(FakeClient(served_by=served_by)).answer({"x": np.zeros((1, 4), np.float32)}, unheard)
    core(FakeClient(served_by="cloud")).answer({"x": np.zeros((1, 4), np.float32)}, unheard)


@pytest.mark.parametrize(
    ("outputs", "wanted", "message"),
    [
        ([("a", "FP32", (-1, 4)), ("b", "FP32", (-1, 4))], "", "several outputs"),
        ([("a", "FP32", (-1, 4))], "c", "no output 'c'"),
        ([("a", "INT64", (-1, 4))], "", "INT64"),
        ([("a", "FP32", (-1, 4, 4))], "", "two classes or more"),
        ([("a", "FP32", (-1, 1))], "", "two classes or more"),
    ],
)
def test_what_is_no_classifier_is_refused(
    outputs: Sequence[tuple[str, str, tuple[int, ...]]], wanted: str, message: str
) -> None:
    specs = tuple(TensorSpec(name=name, datatype=kind, shape=shape) for name, kind, shape in outputs)
    with pytest.raises(CompileError, match=message):
        core(FakeClient(outputs=specs), output=wanted)


def test_one_of_several_outputs_can_be_named(tmp_path: Path) -> None:
    nodes = [helper.make_node("Relu", ["x"], ["a"]), helper.make_node("Neg", ["x"], ["b"])]
    onnx.save(onnx_model(nodes, outputs={"a": ["n", 4], "b": ["n", 4]}), tmp_path / "m.onnx")
    teacher = LocalTeacher(load_engine("onnx", tmp_path / "m.onnx", EngineOptions()), content="a", output="b")
    np.testing.assert_array_equal(teacher.answer({"x": np.ones((2, 4), np.float32)}, unheard), -np.ones((2, 4)))


def test_a_framework_teacher_is_known_by_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penstock.toolchain.describe", lambda name: {"torch": "1"})
    (tmp_path / "net.py").write_text("a")
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text("{}")

    def fingerprints() -> list[str]:
        models = (Factory(named="net.py:f", function="f", file=tmp_path / "net.py"), Directory(path=tmp_path / "bert"))
        return [ToolchainTeacher(model, [X], work=tmp_path, base=tmp_path).fingerprint for model in models]

    before = fingerprints()
    assert before == fingerprints()
    (tmp_path / "weights.pt").write_text("beside the factory")
    (tmp_path / "bert" / "model.safetensors").write_text("weights")
    assert not set(before) & set(fingerprints())
