"""ONNX files: what is read, what is refused and why, and that the same model is written as the same bytes."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from compiler.graph import files, untrusted
from penstock.errors import ArtifactError, CompileError, InvalidInput, StorageError
from penstock.runtime import EngineOptions, load_engine

WEIGHT = np.arange(1024, dtype=np.float32).reshape(4, 256)


def small(
    nodes: Sequence[onnx.NodeProto] | None = None,
    initializers: Sequence[onnx.TensorProto] | None = None,
    *,
    opset: int = 17,
    ir_version: int = 8,
    domains: Sequence[str] = (),
    functions: Sequence[onnx.FunctionProto] = (),
) -> onnx.ModelProto:
    """x FP32 [-1, 4] -> y; y = x @ w unless other nodes are given."""
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")] if nodes is None else nodes
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", None])],
        [numpy_helper.from_array(WEIGHT, "w")] if initializers is None else initializers,
    )
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph, opset_imports=imports, ir_version=ir_version, functions=functions)


def external(**entries: str) -> onnx.TensorProto:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=WEIGHT.shape, data_location=TensorProto.EXTERNAL)
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


@pytest.fixture
def save(tmp_path: Path) -> Callable[[onnx.ModelProto], Path]:
    """Write a model without any check, beside a file ``weights`` that holds its tensor."""

    def write(model: onnx.ModelProto) -> Path:
        directory = tmp_path / "model"
        directory.mkdir(exist_ok=True)
        (directory / "weights").write_bytes(WEIGHT.tobytes())
        (directory / "model.onnx").write_bytes(model.SerializeToString())
        return directory / "model.onnx"

    return write


def answers(path: Path) -> Any:
    return load_engine("onnx", path, EngineOptions()).run({"x": np.ones((3, 4), np.float32)})["y"]


# --- what is read


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"edge.model: .*absent.onnx: no such file"):
        files.read(tmp_path / "absent.onnx", field="edge.model")


@pytest.mark.parametrize("content", [b"", b"PK not onnx", b"\x08\x08\x12", b"{}", b"\xff" * 64])
def test_other_bytes_are_no_model(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(CompileError, match="edge: model.onnx is not a valid ONNX model"):
        files.read(tmp_path / "model.onnx", field="edge")


def test_external_data_is_brought_in(save: Callable[[onnx.ModelProto], Path]) -> None:
    model = files.read(save(small(initializers=[external(location="weights")])), field="edge")
    np.testing.assert_array_equal(numpy_helper.to_array(model.graph.initializer[0]), WEIGHT)


def test_external_data_of_a_subgraph_is_brought_in(save: Callable[[onnx.ModelProto], Path]) -> None:
    body = helper.make_graph([], "branch", [], [helper.make_tensor_value_info("w", 1, WEIGHT.shape)])
    body.initializer.append(external(location="weights"))
    nodes = [
        helper.make_node("Constant", [], ["yes"], value=numpy_helper.from_array(np.array(True))),
        helper.make_node("If", ["yes"], ["chosen"], then_branch=body, else_branch=body),
        helper.make_node("MatMul", ["x", "chosen"], ["y"]),
    ]
    model = files.read(save(small(nodes, [])), field="edge")
    branches = [attribute.g for attribute in model.graph.node[1].attribute]
    for branch in branches:
        np.testing.assert_array_equal(numpy_helper.to_array(branch.initializer[0]), WEIGHT)


def test_tied_weights_may_share_bytes(save: Callable[[onnx.ModelProto], Path]) -> None:
    twice = [external(location="weights"), external(location="weights")]
    twice[1].name = "v"
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("MatMul", ["x", "v"], ["b"]),
        helper.make_node("Add", ["a", "b"], ["y"]),
    ]
    assert len(files.read(save(small(nodes, twice)), field="edge").graph.initializer) == 2


def test_data_files_are_listed_without_reading_them(save: Callable[[onnx.ModelProto], Path]) -> None:
    path = save(small(initializers=[external(location="weights")]))
    assert files.data_files(path, field="edge") == (path.parent / "weights",)
    assert files.data_files(save(small()), field="edge") == ()


# --- what is refused: places


@pytest.mark.parametrize(
    "location",
    ["../secret", "/etc/passwd", "a/../../secret", "..\\secret", "C:\\secret", "\\\\host\\share", "", "./../secret"],
)
def test_external_data_outside_the_models_directory(
    save: Callable[[onnx.ModelProto], Path], tmp_path: Path, location: str
) -> None:
    (tmp_path / "secret").write_bytes(WEIGHT.tobytes())
    with pytest.raises(CompileError, match="not inside the model's own directory; refused"):
        files.read(save(small(initializers=[external(location=location)])), field="edge")


@pytest.mark.parametrize("where", ["file", "directory"])
def test_external_data_behind_a_symbolic_link(
    save: Callable[[onnx.ModelProto], Path], tmp_path: Path, where: str
) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_bytes(WEIGHT.tobytes())
    location = "link" if where == "file" else "link/secret"
    path = save(small(initializers=[external(location=location)]))
    target = tmp_path / "outside" / "secret" if where == "file" else tmp_path / "outside"
    (path.parent / "link").symlink_to(target)
    with pytest.raises(CompileError, match="symbolic link; copy the file itself beside the model"):
        files.read(path, field="edge")


def test_external_data_in_a_pipe_is_not_waited_for(save: Callable[[onnx.ModelProto], Path]) -> None:
    path = save(small(initializers=[external(location="pipe")]))
    os.mkfifo(path.parent / "pipe")
    with pytest.raises(CompileError, match="no such file; external data must lie beside the model"):
        files.read(path, field="edge")


# --- what is refused: ranges and sizes


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"offset": "4"}, "bytes 4 to 4100 of weights, which has only 4096"),
        ({"offset": "-4"}, "offset '-4' is not a number of bytes"),
        ({"offset": "1" * 40}, "is not a number of bytes"),
        ({"offset": "999999999999999999"}, "which has only 4096"),
        ({"offset": "1e3"}, "is not a number of bytes"),
        ({"length": "8"}, "8 bytes, but its type and dimensions .* need 4096"),
        ({"length": "99999999999999999999999"}, "is not a number of bytes"),
    ],
)
def test_ranges_outside_the_data_file(
    save: Callable[[onnx.ModelProto], Path], entries: dict[str, str], message: str
) -> None:
    with pytest.raises(CompileError, match=message):
        files.read(save(small(initializers=[external(location="weights", **entries)])), field="edge")


def test_dimensions_that_no_file_holds(save: Callable[[onnx.ModelProto], Path]) -> None:
    tensor = external(location="weights")
    del tensor.dims[:]
    tensor.dims.extend([2**40, 2**20])
    with pytest.raises(CompileError, match="which has only 4096"):
        files.read(save(small(initializers=[tensor])), field="edge")


def test_a_small_file_that_is_asked_for_again_and_again(save: Callable[[onnx.ModelProto], Path]) -> None:
    tensors = []
    for index in range(untrusted.MAX_SHARING + 1):
        tensors.append(external(location="weights"))
        tensors[-1].name = f"w{index}"
    with pytest.raises(CompileError, match="at most 4 times their size"):
        files.read(save(small([helper.make_node("Identity", ["x"], ["y"])], tensors)), field="edge")


@pytest.mark.parametrize(
    "tensor",
    [
        TensorProto(name="w", data_type=1, dims=[2**40]),
        TensorProto(name="w", data_type=1, dims=[4], float_data=[1, 2]),
        TensorProto(name="w", data_type=1, dims=[4], raw_data=b"123"),
        TensorProto(name="w", data_type=1, dims=[-1], raw_data=b""),
    ],
    ids=["nothing", "too few", "too short", "negative"],
)
def test_tensors_without_the_bytes_they_promise(
    save: Callable[[onnx.ModelProto], Path], tensor: onnx.TensorProto
) -> None:
    with pytest.raises(CompileError, match="not a valid ONNX model"):
        files.read(save(small(initializers=[tensor])), field="edge")


@pytest.mark.parametrize("operator", ["ConstantOfShape", "Expand", "RandomNormal"])
def test_a_few_bytes_that_make_a_huge_tensor(save: Callable[[onnx.ModelProto], Path], operator: str) -> None:
    shape = numpy_helper.from_array(np.array([2**20, 2**20], dtype=np.int64), "shape")
    node = {
        "ConstantOfShape": helper.make_node("ConstantOfShape", ["shape"], ["y"]),
        "Expand": helper.make_node("Expand", ["x", "shape"], ["y"]),
        "RandomNormal": helper.make_node("RandomNormal", [], ["y"], shape=[2**20, 2**20]),
    }[operator]
    with pytest.raises(CompileError, match=f"operator {operator} makes a tensor of"):
        files.read(save(small([node], [shape])), field="edge")


# --- what is refused: structure


def nested(depth: int) -> onnx.NodeProto:
    node = helper.make_node("Identity", ["x"], ["y"])
    for _ in range(depth):
        body = helper.make_graph([node], "inner", [], [helper.make_tensor_value_info("y", 1, None)])
        node = helper.make_node("If", ["x"], ["y"], then_branch=body)
    return node


def test_deeply_nested_subgraphs(save: Callable[[onnx.ModelProto], Path]) -> None:
    with pytest.raises(CompileError, match="subgraphs are nested more than 16 deep"):
        files.read(save(small([nested(untrusted.MAX_SUBGRAPH_DEPTH + 1)])), field="edge")


def test_subgraphs_nested_deeper_than_protobuf_reads(tmp_path: Path) -> None:
    """Bytes by hand, for the library would not write them: a graph in an attribute in a node, 200 times."""

    def field(number: int, content: bytes) -> bytes:
        size, varint = len(content), b""
        while size >= 128:
            varint, size = varint + bytes([size % 128 + 128]), size // 128
        return bytes([number << 3 | 2]) + varint + bytes([size]) + content

    graph = b""
    for _ in range(200):
        graph = field(1, field(5, field(6, graph)))
    (tmp_path / "model.onnx").write_bytes(b"\x08\x08" + field(7, graph))
    with pytest.raises(CompileError, match="not a valid ONNX model: .*nested this deep, or the file is damaged"):
        files.read(tmp_path / "model.onnx", field="edge")


def function(name: str, *calls: str) -> onnx.FunctionProto:
    values = ["a", *(f"t{index}" for index in range(1, len(calls))), "b"]
    nodes = [
        helper.make_node(call, [values[index]], [values[index + 1]], domain="" if call == "Identity" else "local")
        for index, call in enumerate(calls)
    ]
    return helper.make_function("local", name, ["a"], ["b"], nodes, [helper.make_opsetid("", 17)])


def calling(functions: list[onnx.FunctionProto]) -> onnx.ModelProto:
    node = helper.make_node("F0", ["x"], ["y"], domain="local")
    return small([node], domains=["local"], functions=functions)


def test_local_functions_are_read(save: Callable[[onnx.ModelProto], Path]) -> None:
    assert files.read(save(calling([function("F0", "Identity", "Identity")])), field="edge").functions


def test_functions_that_call_themselves(save: Callable[[onnx.ModelProto], Path]) -> None:
    with pytest.raises(CompileError, match="local function 'F0' calls itself"):
        files.read(save(calling([function("F0", "F1"), function("F1", "F0")])), field="edge")


def test_functions_that_double(save: Callable[[onnx.ModelProto], Path]) -> None:
    doubling = [function(f"F{index}", f"F{index + 1}", f"F{index + 1}") for index in range(40)]
    with pytest.raises(CompileError, match="operators with its functions expanded; at most"):
        files.read(save(calling([*doubling, function("F40", "Identity")])), field="edge")


def test_custom_operator_is_named_with_its_domain(save: Callable[[onnx.ModelProto], Path]) -> None:
    node = helper.make_node("Sparkle", ["x"], ["y"], domain="my.ops", name="last")
    with pytest.raises(CompileError, match=r"operator Sparkle of the custom domain 'my.ops' \(node 'last'\)"):
        files.read(save(small([node], domains=["my.ops"])), field="edge")


def test_too_new_versions_name_what_is_supported(save: Callable[[onnx.ModelProto], Path]) -> None:
    newest = onnx.defs.onnx_opset_version()
    with pytest.raises(CompileError, match=f"opset {newest + 1} is too new: up to {newest} is supported"):
        files.read(save(small(opset=newest + 1)), field="edge")
    with pytest.raises(CompileError, match=f"IR version 99 is too new: up to {onnx.IR_VERSION} is supported"):
        files.read(save(small(ir_version=99)), field="edge")


# --- what onnxruntime refuses


def test_a_runnable_model_is_runnable(save: Callable[[onnx.ModelProto], Path]) -> None:
    files.check_runnable(save(small()), field="edge")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (small([helper.make_node("Sparkle", ["x"], ["y"])]), "there is no operator Sparkle in opset 17"),
        (
            small([helper.make_node("Sparkle", ["x"], ["y"], domain="my.ops")], domains=["my.ops"]),
            r"operator Sparkle of domain 'my.ops' is unknown to onnxruntime .* \(the model uses opset 17\)",
        ),
        (small(ir_version=99), r"IR version 99 is too new for onnxruntime .*, which reads up to \d+"),
        (small(opset=99), r"opset 99 is too new for onnxruntime .*, which supports up to \d+"),
        (
            small([
                helper.make_node("Cast", ["x"], ["h"], to=TensorProto.BFLOAT16),
                helper.make_node("Elu", ["h"], ["e"], name="elu"),
                helper.make_node("Cast", ["e"], ["y"], to=TensorProto.FLOAT),
            ]),
            r"operator Elu \(node 'elu'\) cannot take tensor\(bfloat16\); export in float32",
        ),
        (
            small([
                helper.make_node("Cast", ["x"], ["h"], to=TensorProto.DOUBLE),
                helper.make_node("Det", ["h"], ["d"], name="determinant"),
                helper.make_node("Cast", ["d"], ["y"], to=TensorProto.FLOAT),
            ]),
            r"no CPU implementation of operator Det of opset 11 \(node 'determinant'\)",
        ),
    ],
    ids=["operator", "domain", "ir", "opset", "type", "kernel"],
)  # fmt: skip
def test_what_onnxruntime_refuses_is_named(
    save: Callable[[onnx.ModelProto], Path], model: onnx.ModelProto, message: str
) -> None:
    with pytest.raises(CompileError, match=message):
        files.check_runnable(save(model), field="edge")


# --- what is written


def test_same_model_same_bytes(tmp_path: Path) -> None:
    for name in ("a.onnx", "b.onnx"):
        files.write(small(), tmp_path / name)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.onnx", "b.onnx"]


def test_a_model_above_the_limit_gets_a_data_file(tmp_path: Path) -> None:
    model = small()
    model.doc_string = "kept"
    before = model.SerializeToString(deterministic=True)
    for directory in ("a", "b"):
        (tmp_path / directory).mkdir()
        files.write(model, tmp_path / directory / "model.onnx", limit_bytes=1000)
    assert model.SerializeToString(deterministic=True) == before, "the caller's model is not touched"
    written = {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()}
    assert written == {path.name: path.read_bytes() for path in (tmp_path / "b").iterdir()}
    assert set(written) == {"model.onnx", "model.onnx.data"}
    read = files.read(tmp_path / "a" / "model.onnx", field="edge")
    assert read.doc_string == "kept"
    expected = ReferenceEvaluator(small()).run(None, {"x": np.ones((3, 4), np.float32)})[0]
    np.testing.assert_allclose(answers(tmp_path / "a" / "model.onnx"), expected, rtol=1e-6)


def test_small_tensors_stay_in_the_model_file(tmp_path: Path) -> None:
    """Shape inference reads them there."""
    shape = numpy_helper.from_array(np.array([-1, 256], dtype=np.int64), "shape")
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Reshape", ["h", "shape"], ["y"])]
    files.write(small(nodes, [numpy_helper.from_array(WEIGHT, "w"), shape]), tmp_path / "model.onnx", limit_bytes=1000)
    model = onnx.load(str(tmp_path / "model.onnx"), load_external_data=False)
    assert {tensor.name: tensor.data_location for tensor in model.graph.initializer} == {
        "w": TensorProto.EXTERNAL,
        "shape": TensorProto.DEFAULT,
    }


def test_a_model_that_shrank_leaves_no_data_file(tmp_path: Path) -> None:
    files.write(small(), tmp_path / "model.onnx", limit_bytes=1000)
    files.write(small(), tmp_path / "model.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_more_than_two_gib_beside_a_small_file_is_read(tmp_path: Path) -> None:
    """A sparse file of 2 GiB and some: its last tensor is real, and the first is never touched by the listing."""
    size = 2 * 1024**3 + 4096
    with (tmp_path / "weights").open("wb") as file:
        file.truncate(size)
        file.seek(size - WEIGHT.nbytes)
        file.write(WEIGHT.tobytes())
    large = external(location="weights")
    large.name, large.dims[:] = "unused", [(size - WEIGHT.nbytes) // 4]
    last = external(location="weights", offset=str(size - WEIGHT.nbytes))
    path = tmp_path / "model.onnx"
    path.write_bytes(small(initializers=[large, last]).SerializeToString())
    assert files.data_files(path, field="edge") == (tmp_path / "weights",)
    found = untrusted.check(onnx.load(str(path), load_external_data=False), tmp_path)
    assert [place.offset + place.length for _, place in found] == [size - WEIGHT.nbytes, size]


def test_nothing_half_written_when_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(StorageError, match="the disk is full"):
        files.write(small(), tmp_path / "model.onnx", limit_bytes=1000)
    assert list(tmp_path.iterdir()) == []


def test_a_locale_that_is_not_here_is_named_with_one_that_is_everywhere(tmp_path: Path) -> None:
    node = helper.make_node("StringNormalizer", ["x"], ["y"], case_change_action="LOWER", locale="tlh_QO.UTF-8")
    text = [helper.make_tensor_value_info(name, TensorProto.STRING, ["n"]) for name in "xy"]
    graph = helper.make_graph([node], "lower", text[:1], text[1:])
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    message = r"locale 'tlh_QO.UTF-8'.*locale = \"C.UTF-8\".*skl2onnx: options=.*install tlh_QO.UTF-8 here and on every"
    with pytest.raises(CompileError, match=message):
        files.check_runnable(path, field="model")
    with pytest.raises(ArtifactError, match=message):
        load_engine("onnx", path, EngineOptions())


def test_a_dimension_of_minus_one_is_a_free_one(save: Callable[[onnx.ModelProto], Path]) -> None:
    model = small()
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_value = -1
    found = files.read(save(model), field="model").graph
    for value in (found.input[0], found.output[0]):
        assert not value.type.tensor_type.shape.dim[0].WhichOneof("value")
    assert found.input[0].type.tensor_type.shape.dim[1].dim_value == 4
