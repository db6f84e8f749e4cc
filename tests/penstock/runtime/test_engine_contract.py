"""One contract suite for every engine: a new row of ``penstock.runtime`` gets a row in ``WRITERS`` and passes."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import numpy as np
import onnxruntime
import pytest

import penstock.runtime
from penstock.artifact.manifests import EXECUTION_PROVIDERS
from penstock.errors import ArtifactError, Internal, InvalidInput
from penstock.policy.repeats import Repeats
from penstock.runtime import Engine, EngineOptions, load_engine, platform_of
from penstock.runtime.scripted import Script
from penstock.wire.tensors import TensorSpec
from tests.factories import onnx_model

X = TensorSpec(name="x", datatype="FP32", shape=(-1, 4))
ROWS = np.arange(8, dtype="f4").reshape(2, 4)


def _onnx_identity(path: Path) -> Path:
    onnx = pytest.importorskip("onnx", reason="writing a model needs onnx")
    from onnx import helper

    identity = helper.make_node("Identity", ["x"], ["y"])
    onnx.save(onnx_model([identity], outputs={"y": ["n", 4]}), path)
    return path


def _echo(path: Path) -> Path:
    path.write_bytes(msgspec.json.encode([X]))
    return path


def _script(path: Path) -> Path:
    path.write_bytes(msgspec.json.encode(Script(factor=1.0)))
    return path


WRITERS: Mapping[str, Callable[[Path], Path]] = {"onnx": _onnx_identity, "echo": _echo, "scripted": _script}
"""Each writes a model that gives its input ``x`` back as its only output."""

each_engine = pytest.mark.parametrize("name", WRITERS)


@pytest.fixture(params=WRITERS)
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    made = load_engine(request.param, WRITERS[request.param](tmp_path / "model"), EngineOptions())
    yield made
    made.close()


def test_every_engine_is_held_to_the_contract() -> None:
    assert set(WRITERS) == set(penstock.runtime._ENGINES)


def test_it_says_what_it_takes_and_gives(engine: Engine) -> None:
    assert engine.inputs == (X,)
    (output,) = engine.outputs
    assert (output.datatype, output.shape) == ("FP32", (-1, 4))


def test_rows_come_back_in_their_order(engine: Engine) -> None:
    (result,) = engine.run({"x": ROWS}).values()
    np.testing.assert_array_equal(result, ROWS)


def test_only_the_wanted_outputs_come_back(engine: Engine) -> None:
    name = engine.outputs[0].name
    assert list(engine.run({"x": ROWS}, [name])) == [name]
    assert list(engine.run({"x": ROWS}, None)) == [name]


def test_an_output_that_does_not_exist_is_bad_input(engine: Engine) -> None:
    with pytest.raises(InvalidInput, match="nope"):
        engine.run({"x": ROWS}, ["nope"])


def test_an_input_that_is_missing_is_bad_input(engine: Engine) -> None:
    with pytest.raises(InvalidInput, match="x"):
        engine.run({})


def test_arrays_as_they_come_from_a_wire_or_from_a_larger_batch_are_taken(engine: Engine) -> None:
    read_only = np.frombuffer(ROWS.tobytes(), "f4").reshape(2, 4)
    every_second = np.repeat(ROWS, 2, axis=0)[::2]
    for given in (read_only, every_second):
        (result,) = engine.run({"x": given}).values()
        np.testing.assert_array_equal(result, ROWS)


def test_an_answer_stays_what_it_was_when_the_next_one_is_computed(engine: Engine) -> None:
    (first,) = engine.run({"x": ROWS}).values()
    engine.run({"x": ROWS + 1})
    np.testing.assert_array_equal(first, ROWS)


def test_it_runs_in_another_thread_than_the_one_that_loaded_it(engine: Engine) -> None:
    with ThreadPoolExecutor(1) as thread:
        (result,) = thread.submit(engine.run, {"x": ROWS}).result().values()
    np.testing.assert_array_equal(result, ROWS)


def test_it_can_be_closed_twice_and_does_not_run_afterwards(engine: Engine) -> None:
    engine.close()
    engine.close()
    with pytest.raises(Internal, match="closed"):
        engine.run({"x": ROWS})


@each_engine
def test_a_file_that_is_no_model_is_refused_by_its_name(name: str, tmp_path: Path) -> None:
    (tmp_path / "bad").write_bytes(b"not a model")
    with pytest.raises(ArtifactError, match="bad"):
        load_engine(name, tmp_path / "bad", EngineOptions())


@each_engine
def test_it_has_a_platform_of_project_and_format(name: str) -> None:
    assert "_" in platform_of(name)


def test_onnx_raises_what_a_request_did_wrong_and_writes_nothing_to_stderr(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    onnx = pytest.importorskip("onnx", reason="writing a model needs onnx")
    gather = onnx.helper.make_node("Gather", ["table", "x"], ["y"])
    table = {"table": np.arange(3, dtype="f4")}
    onnx.save(onnx_model([gather], table, inputs={"x": ["n"]}, outputs={"y": ["n"]}, ints=("x",)), tmp_path / "m.onnx")
    engine = load_engine("onnx", tmp_path / "m.onnx", EngineOptions())
    with pytest.raises(InvalidInput, match="idx=9 must be within"):
        engine.run({"x": np.array([9])})
    assert capfd.readouterr().err == ""


def test_what_onnxruntime_says_is_logged_once_in_a_while_and_not_written_to_stderr(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    onnx = pytest.importorskip("onnx", reason="writing a model needs onnx")
    engines = pytest.importorskip("penstock.runtime.onnx")
    if not hasattr(engines.ort, "set_default_logger_callback"):
        pytest.skip("this onnxruntime has no callback for its log")
    monkeypatch.setattr(engines, "_SAID", Repeats(every_s=600.0, max_kinds=2))
    same = onnx.helper.make_node("Identity", ["x"], ["y"])
    unused = {"unused": np.zeros(3, "f4")}
    onnx.save(onnx_model([same], unused, inputs={"x": ["n"]}, outputs={"y": ["n"]}), tmp_path / "m.onnx")
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            load_engine("onnx", tmp_path / "m.onnx", EngineOptions()).close()
    (said,) = [record for record in caplog.records if record.message == "onnxruntime says"]
    assert "initializer 'unused'" in said.penstock_fields["text"]  # type: ignore[attr-defined]
    assert capfd.readouterr().err == ""


def test_onnx_refuses_inputs_that_the_model_refuses(tmp_path: Path) -> None:
    engine = load_engine("onnx", _onnx_identity(tmp_path / "m.onnx"), EngineOptions())
    with pytest.raises(InvalidInput):
        engine.run({"x": np.zeros((1, 5), "f4")})


def test_an_engine_or_a_provider_that_is_not_known_is_refused_with_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"unknown engine 'tflite'.*onnx"):
        load_engine("tflite", tmp_path, EngineOptions())
    with pytest.raises(InvalidInput, match="unknown 'npu'"):
        load_engine("onnx", _onnx_identity(tmp_path / "m.onnx"), EngineOptions(provider="npu"))


def test_a_provider_that_is_not_there_is_refused_and_nothing_runs_on_the_cpu_instead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _onnx_identity(tmp_path / "m.onnx")
    with pytest.raises(ArtifactError, match=r"has no OpenVINOExecutionProvider; install onnxruntime-openvino instead"):
        load_engine("onnx", path, EngineOptions(provider="openvino"))
    # a build with the provider, on a machine without its driver: onnxruntime goes on with the CPU
    available = [EXECUTION_PROVIDERS["cuda"], EXECUTION_PROVIDERS["cpu"]]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: available)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ArtifactError, match="CUDAExecutionProvider did not start here.*neither measured nor cert"):
            load_engine("onnx", path, EngineOptions(provider="cuda"))


def test_platforms_are_spelt_as_the_protocol_spells_them() -> None:
    assert platform_of("onnx") == "onnxruntime_onnx"
    assert platform_of("of a newer release") == "penstock_of a newer release"
