"""Quantization-aware training in the real toolchain: what is trained, that onnxruntime agrees, and what is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from compiler.graph import fake_quantized
from compiler.passes import int8_qat, int8_static
from compiler.passes.job import PassJob, PassResult
from penstock import toolchain as toolchains
from penstock.errors import CalibrationError, CompileError
from tests.compiler import small_models as small
from tests.compiler.passes import build

RUNNERS = Path(__file__).parents[3] / "compiler" / "runners"
SETTINGS: dict[str, Any] = {
    "output": "logits",
    "epochs": 4,
    "lr": 1e-4,
    "temperature": 0.2,  # the logits of a ridge regression are small
    "int8": {"smooth": 0.0},
}
CHECK = f"""
import sys
sys.path.insert(0, {str(RUNNERS)!r})
import numpy as np
import torch
from protocol import serve
from qat_program import Program

def check(job):
    answers = {{}}
    for name, case in job.items():
        arrays = {{
            key: {{k: np.array(v, dtype) for k, (v, dtype) in case[key].items()}} for key in ("constants", "values")
        }}
        given = [torch.tensor(v, dtype=getattr(torch, dtype)) for v, dtype in case["feeds"]]
        said = Program(case["program"], arrays["constants"], arrays["values"])(*given)
        answers[name] = said.detach().double().numpy().tolist()
    return answers

serve(check)
"""


@pytest.fixture(scope="module")
def torch(toolchain: Callable[[str], str]) -> str:
    return toolchain("torch")


def job_of(directory: Path, **options: Any) -> PassJob:
    """A network whose second convolution has seven-bit weights and thin ranges, so that there is something to learn."""
    trained = small.cnn()
    job = small.job(directory, trained.model, calibration=trained.fit[:320], target="x86-64", **{**SETTINGS, **options})
    work = job.out.with_name(f"{job.out.name}-work")
    work.mkdir()
    return replace(job, work=work)


def stored(path: Path) -> dict[str, np.ndarray]:
    return build.constants(onnx.load(str(path)))


def test_training_moves_weights_and_nothing_else_and_onnxruntime_agrees(tmp_path: Path, torch: str) -> None:
    job = job_of(tmp_path)
    notes: list[str] = []
    result = int8_qat.run(replace(job, progress=lambda share, note: notes.append(note)))
    facts = result.facts["quantization_aware"]
    assert facts["difference_from_torch"] < 1e-4
    assert facts["loss_after"] < facts["loss_before"] / 2
    assert facts["best_epoch"] > 0
    assert "quantization-aware: 4 epochs" in result.summary
    # not each epoch is told: some take no longer than a glance
    assert any(re.match(r"quantization-aware: epoch [1-4] of 4", note) for note in notes), notes
    check_same_graph(job, result)
    again = interrupted_and_resumed(replace(job, out=tmp_path / "again", work=tmp_path / "again-work"))
    assert (tmp_path / "again" / again.model).read_bytes() == (job.out / result.model).read_bytes()


def interrupted_and_resumed(job: PassJob) -> PassResult:
    """Ctrl-C in the third epoch, wherever the runner is by then, and the same again."""
    job = replace(job, options={**job.options, "checkpoint_s": 0.0})
    assert job.work is not None
    for directory in (job.out, job.work):
        directory.mkdir()

    def interrupt(share: float, note: str) -> None:
        if note.startswith("quantization-aware: epoch 3"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        int8_qat.run(replace(job, progress=interrupt))
    assert (job.work / "checkpoint").exists()
    assert not list(job.out.iterdir())
    return int8_qat.run(job)


def check_same_graph(job: PassJob, result: PassResult) -> None:
    """Everything but values is what the pass int8 makes: the same operators, zero points, and integers of 7 bits."""
    made = int8_static.quantized(replace(job, options={"smooth": 0.0}))
    trained = onnx.load(str(job.out / result.model))
    assert build.kinds(trained) == build.kinds(made.model)
    before, after = build.constants(made.model), build.constants(trained)
    zeros = [name for name in before if name.endswith("_zero_point")]
    assert zeros
    assert all(np.array_equal(before[name], after[name]) for name in zeros)
    weights = [name for name, value in after.items() if value.dtype == np.int8 and not name.endswith("_zero_point")]
    assert len(weights) == 3
    assert all(np.abs(after[name].astype(int)).max() <= 64 for name in weights)
    assert any(not np.array_equal(before[name], after[name]) for name in weights)
    assert result.facts["integer_nodes"].keys() == {"QLinearConv", "QGemm"}
    assert not result.facts["float_nodes"]


def test_a_graph_that_onnxruntime_answers_otherwise_is_refused(
    tmp_path: Path, torch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = fake_quantized.with_values

    def other_zero_points(*given: Any) -> onnx.ModelProto:
        model = exact(*given)
        for tensor in model.graph.initializer:
            if tensor.name.startswith("r0") and tensor.name.endswith("zero_point"):
                tensor.CopyFrom(onnx.numpy_helper.from_array(np.array(9, np.uint8), tensor.name))
        return model

    monkeypatch.setattr(fake_quantized, "with_values", other_zero_points)
    with pytest.raises(CompileError, match="onnxruntime answers the trained graph otherwise than torch does, by 0"):
        int8_qat.run(job_of(tmp_path, epochs=1))


def test_weights_that_tensorrt_keeps_in_float_are_not_trained(tmp_path: Path) -> None:
    trained = small.cnn()
    job = small.job(tmp_path, trained.model, calibration=trained.fit[:32], target="tensorrt", **SETTINGS)
    with pytest.raises(CompileError, match="a graph for tensorrt has its weights in float"):
        int8_qat.run(job)


def test_without_examples_nothing_is_trained(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="training needs examples"):
        int8_qat.run(small.job(tmp_path, small.cnn().model, **SETTINGS))


def test_every_operator_answers_as_onnxruntime_does(tmp_path: Path, torch: str) -> None:
    cases = {name: case(*parts) for name, parts in operators().items()}
    assert {node.op_type for model, _ in cases.values() for node in model.graph.node} == fake_quantized.OPERATORS
    runner = tmp_path / "check.py"
    runner.write_text(CHECK)
    asked = {name: plain(model, feeds) for name, (model, feeds) in cases.items()}
    answers = toolchains.call(torch, runner, json.loads(json.dumps(asked)))
    for name, (model, feeds) in cases.items():
        expected = build.answer(model, feeds)["y"]
        np.testing.assert_allclose(np.array(answers[name]), expected, rtol=1e-5, atol=1e-6, err_msg=name)


Parts = tuple[list[onnx.NodeProto], dict[str, np.ndarray], dict[str, np.ndarray]]


def case(nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray], feeds: dict[str, np.ndarray]) -> Any:
    inputs = {name: list(value.shape) for name, value in feeds.items()}
    model = build.model(nodes, constants, inputs, {"y": []})
    del model.graph.output[0].type.tensor_type.shape.dim[:]
    model.graph.output[0].type.tensor_type.ClearField("shape")
    return model, feeds


def plain(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> dict[str, Any]:
    program = fake_quantized.program(model, model, highest=127)

    def listed(arrays: Any) -> dict[str, Any]:
        return {name: (value.tolist(), str(value.dtype)) for name, value in arrays.items()}

    return {
        "program": {**program.as_job(), "output": "y"},
        "constants": listed(program.constants),
        "values": listed(program.values),
        "feeds": [(feeds[name].tolist(), str(feeds[name].dtype)) for name in program.inputs],
    }


def whole(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


def operators() -> dict[str, Parts]:
    """A case of every operator, and of the attributes that change what some compute."""
    x, image, near = build.floats(3, 4), build.floats(2, 3, 6, 5, seed=1), build.floats(3, 4, seed=2)
    found: dict[str, Parts] = {}

    def add(name: str, feed: np.ndarray, *inputs: Any, op: str = "", more: Any = (), **attributes: Any) -> None:
        names = ["x"] + ["" if value is None else f"c{at}" for at, value in enumerate(inputs)]
        constants = {f"c{at}": value for at, value in enumerate(inputs) if value is not None}
        nodes = [helper.make_node(op or name, names, ["y", *more], **attributes)]
        found[name] = (nodes, constants, {"x": feed})

    for op in ("Abs", "Elu", "Erf", "Exp", "HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "Neg", "Relu",
               "Sigmoid", "Softplus", "Tanh", "Dropout"):  # fmt: skip
        add(op, x)
    for op in ("Add", "Sub", "Mul", "Max", "Min", "PRelu"):
        add(op, x, near[0])
    for op in ("Log", "Sqrt"):
        add(op, np.abs(x) + 1)
    add("Div", x, np.abs(near) + 1)
    add("Pow", np.abs(x), np.array(2.0, np.float32))
    add("Softmax", x, axis=0)
    add("LogSoftmax", x)
    add("Clip", x, np.array(-0.5, np.float32), np.array(0.5, np.float32))
    add("Clip from below", x, np.array(0.1, np.float32), op="Clip")
    add("Conv", image, build.floats(4, 3, 3, 3), build.floats(4), pads=[1, 0, 1, 2], strides=[2, 1])
    add("Conv in groups", image, build.floats(3, 1, 3, 3), op="Conv", group=3, pads=[1, 1, 1, 1], dilations=[1, 2])
    add("Conv of one dimension", image[0], build.floats(4, 6, 3), op="Conv")
    add("MaxPool", image, kernel_shape=[2, 3], strides=[2, 2], pads=[1, 0, 0, 1])
    add("AveragePool", image, kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    add("AveragePool with pads", image, op="AveragePool", kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1)
    add("GlobalAveragePool", image)
    add("GlobalMaxPool", image)
    add("BatchNormalization", image, *(np.abs(build.floats(3, seed=at)) + 0.1 for at in range(4)))
    add("LayerNormalization", x, near[0], near[1])
    add("Gemm", x, build.floats(5, 4), build.floats(5), transB=1, alpha=0.5, beta=2.0)
    add("Gemm transposed", x, build.floats(3, 5), op="Gemm", transA=1)
    add("MatMul", x, build.floats(4, 5))
    add("Flatten", image, axis=2)
    add("Reshape", image, whole(0, -1, 5))
    add("Reshape to a number", x[:1, 0], whole(), op="Reshape")
    add("Gather by a number", x, np.array(1), op="Gather")
    add("Transpose", image, perm=[0, 2, 3, 1])
    add("Squeeze", image[:1], whole(0))
    add("Unsqueeze", x, whole(0, -1))
    add("Concat", x, near, axis=1)
    add("Split", x, whole(1, 3), axis=1, more=("rest",))
    add("Slice", image, whole(1, -1), whole(6, -6), whole(2, 3), whole(2, -1))
    add("Gather", x, whole(2, -1, 0), axis=1)
    add("Pad", image, whole(0, 0, 1, 2, 0, 0, 0, 1), np.array(1.5, np.float32))
    add("Expand", x[:, :1], whole(3, 4))
    for op in ("ReduceMean", "ReduceMax"):
        add(op, image, axes=[2, 3], keepdims=0)
    add("ReduceSum", image, whole(1))
    found["Where"] = (
        [
            helper.make_node("Cast", ["x"], ["i"], to=7),
            helper.make_node("Equal", ["i", "one"], ["b"]),
            helper.make_node("Where", ["b", "x", "c"], ["y"]),
        ],
        {"c": near, "one": whole(1)},
        {"x": np.maximum(x, 0)},
    )
    found["Shape"] = (
        [helper.make_node("Shape", ["x"], ["s"]), helper.make_node("Cast", ["s"], ["y"], to=1)],
        {},
        {"x": image},
    )
    return found
