"""Reading and writing ONNX files: checked on the way in, the same bytes for the same model on the way out.

Owns the form on disk: one file, or above protobuf's limit of 2 GiB one file with its large tensors in ``NAME.data``
beside it. What a file may not do is decided by ``compiler.graph.untrusted``.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from compiler.graph import rewrite, untrusted
from compiler.graph.onnx_libraries import DecodeError, EncodeError, TensorProto, onnx, ort, session_options
from penstock.artifact.blobs import disk_errors
from penstock.errors import CompileError, InvalidInput
from penstock.runtime.onnx import missing_locale

MAX_MODEL_BYTES = 2 * 1024**3 - 1  # protobuf cannot hold more in one message
_KEPT_INSIDE_BYTES = 1024  # smaller tensors stay in the model file: shape inference reads them there
_ALIGNMENT = 4096  # of tensors in the data file: a page, so that they can be memory-mapped
_TOO_DEEP = "; protobuf cannot read messages nested this deep, or the file is damaged"


def read(path: Path, *, field: str) -> onnx.ModelProto:
    """Read and check a model and bring in its external data. It may be larger than protobuf could write as one.

    Args:
        field: the recipe's name for it, for messages.

    Raises:
        InvalidInput: no such file. CompileError: not a valid ONNX model, or one that is refused (``untrusted``).
    """
    model = _parsed(path, field)
    external = _guarded(model, path, field)
    try:
        # a model with external data is checked by its path: as a message, protobuf might be unable to hold it
        onnx.checker.check_model(str(path) if external else model)
        for tensor, found in external:
            _bring_in(tensor, found)
    except (OSError, ValueError, EncodeError, onnx.checker.ValidationError) as error:
        raise _invalid(path, field, str(error)) from error
    _free_negative(model.graph)
    return model


def read_graph(path: Path, *, field: str) -> onnx.ModelProto:
    """Read a model and leave its external data where it is: for who looks at operators and shapes only.

    Raises:
        InvalidInput, CompileError: as :func:`read`.
    """
    model = _parsed(path, field)
    _guarded(model, path, field)
    return model


def write(model: onnx.ModelProto, path: Path, *, limit_bytes: int = MAX_MODEL_BYTES) -> None:
    """Write a model, the same model to the same bytes: one file, or above ``limit_bytes`` a file and ``NAME.data`` with
    the large initializers.

    Nothing half-written stays behind: files are renamed into place when they are complete.

    Raises:
        StorageError: the disk is full or not writable. CompileError: larger than the limit even without initializers.
    """
    data = data_path(path)
    making = {target: target.with_name(f".{target.name}.making") for target in (data, path)}
    with disk_errors(f"writing {path}"):
        try:
            if _inline_bytes(model) > limit_bytes:
                model = _with_data_file(model, making[data], data.name)
            making[path].write_bytes(_serialized(model, path))
            if not making[data].exists():
                data.unlink(missing_ok=True)  # of a larger model that was here before
            for target, made in making.items():
                if made.exists():
                    os.replace(made, target)
        finally:
            for made in making.values():
                made.unlink(missing_ok=True)


def data_path(path: Path) -> Path:
    """Return where :func:`write` puts the tensors of a model that is too large for one file."""
    return path.with_name(f"{path.name}.data")


def data_files(path: Path, *, field: str) -> tuple[Path, ...]:
    """Return the files beside a model that hold its external data, sorted; none for most models.

    Raises:
        InvalidInput, CompileError: as :func:`read`.
    """
    external = _guarded(_parsed(path, field), path, field)
    return tuple(sorted({found.path for _, found in external}))


def check_runnable(path: Path, *, field: str) -> None:
    """Let onnxruntime load the model without running it.

    Raises:
        CompileError: it refuses; the message names the operator with its opset, or the version, and what is supported.
    """
    options = session_options(ort.GraphOptimizationLevel.ORT_DISABLE_ALL)
    options.intra_op_num_threads = 1
    try:
        ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no base below Exception
        raise CompileError(f"{field}: {path.name}: {_refusal(str(error), path)}") from error


def opset(model: onnx.ModelProto) -> int:
    """Return the version of ONNX's own operators that a model asks for; 0 if it has none of them."""
    return max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)


_REFUSALS: tuple[tuple[str, str], ...] = (
    (
        r"Unsupported model IR version: (\d+), max supported IR version: (\d+)",
        "IR version {0} is too new for onnxruntime {ort}, which reads up to {1}; export with an older onnx",
    ),
    (
        r"Opset (\d+) is under development.*?till opset (\d+)",
        "opset {0} is too new for onnxruntime {ort}, which supports up to {1}; export with an older opset",
    ),
    (
        r"(\S*):(\w+)\(-?\d+\) is not a registered function/op",
        "operator {1} of domain {0!r} is unknown to onnxruntime {ort}; export the model without it",
    ),
    (
        r"No Op registered for (\w+) with domain_version of (\d+)",
        "there is no operator {0} in opset {1}; export with an opset that has it, or without the operator",
    ),
    (
        r"Could not find an implementation for (\w+)\((\d+)\) node with name '([^']*)'",
        "onnxruntime {ort} has no CPU implementation of operator {0} of opset {1} (node {2!r}) for the types it is "
        "given; export in float32, or without the operator",
    ),
    (
        r"Type '([^']*)' of input parameter \(([^)]*)\) of operator \(([^)]*)\) in node \(([^)]*)\) is invalid",
        "operator {2} (node {3!r}) cannot take {0}; export in float32, or without the operator",
    ),
)


def _refusal(text: str, path: Path) -> str:
    if advice := missing_locale(text):
        return advice
    known = _known_refusal(text)
    if known:
        model = onnx.load(str(path), load_external_data=False)
        return known if "opset" in known else f"{known} (the model uses opset {opset(model)})"
    plain = text.rpartition("failed:")[2].strip() or text
    return f"onnxruntime {ort.__version__} cannot load it: {plain[:500]}"


def _known_refusal(text: str) -> str:
    """Say what onnx or onnxruntime means by its message, and what to do; "" for a message that is not in the table."""
    for pattern, message in _REFUSALS:
        found = re.search(pattern, text, flags=re.DOTALL)
        if found:
            return message.format(*found.groups(), ort=ort.__version__)
    return ""


def _parsed(path: Path, field: str) -> onnx.ModelProto:
    if not path.is_file():
        raise InvalidInput(f"{field}: {path}: no such file", field=field)
    try:
        if path.stat().st_size > MAX_MODEL_BYTES:
            raise CompileError(f"{field}: {path.name}: more than 2 GiB in one file; save it with external data")
        return onnx.load_model_from_string(path.read_bytes(), format="protobuf")
    except (DecodeError, OSError) as error:
        raise _invalid(path, field, f"{str(error).strip()}{_TOO_DEEP}") from error


def _guarded(model: onnx.ModelProto, path: Path, field: str) -> list[tuple[TensorProto, untrusted.ExternalRange]]:
    try:
        return untrusted.check(model, path.parent)
    except CompileError as error:
        raise CompileError(f"{field}: {path.name}: {error.message}") from error


def _free_negative(graph: onnx.GraphProto) -> None:
    """Let dimensions of -1 be the free ones that they mean: some exporters write the number, and nobody has so many."""
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_value < 0:
                dim.ClearField("dim_value")


def _bring_in(tensor: TensorProto, found: untrusted.ExternalRange) -> None:
    with found.path.open("rb") as file:
        file.seek(found.offset)
        tensor.raw_data = file.read(found.length)
    tensor.ClearField("data_location")
    tensor.ClearField("external_data")


def _invalid(path: Path, field: str, reason: str) -> CompileError:
    known = _known_refusal(reason)
    if known:
        node = re.search(r"Bad node spec for node\. Name: (\S+)", reason)
        return CompileError(f"{field}: {path.name}: {known}{f' (node {node[1]!r})' if node else ''}")
    plain = " ".join(reason.split())[:500]
    return CompileError(f"{field}: {path.name} is not a valid ONNX model: {plain}; export it again")


def _inline_bytes(model: onnx.ModelProto) -> int:
    """Count the bytes of the initializers, which are nearly all of a large model; protobuf cannot size one above its
    limit.
    """
    return sum(len(tensor.raw_data) for tensor in model.graph.initializer)


def _with_data_file(model: onnx.ModelProto, data: Path, name: str) -> onnx.ModelProto:
    """Return a copy of the model whose large initializers are in ``data``, in the model's order; one at a time in
    memory.
    """
    small = onnx.ModelProto()
    rewrite.copy_fields(model, small, besides="graph")
    rewrite.copy_fields(model.graph, small.graph, besides="initializer")
    with data.open("wb") as file:
        for tensor in model.graph.initializer:
            raw = tensor.raw_data
            if len(raw) < _KEPT_INSIDE_BYTES:
                small.graph.initializer.add().CopyFrom(tensor)
                continue
            file.write(b"\0" * (-file.tell() % _ALIGNMENT))
            outside = small.graph.initializer.add(
                name=tensor.name, data_type=tensor.data_type, dims=tensor.dims, data_location=TensorProto.EXTERNAL
            )
            for key, text in (("location", name), ("offset", file.tell()), ("length", len(raw))):
                outside.external_data.add(key=key, value=str(text))
            file.write(raw)
    return small


def _serialized(model: onnx.ModelProto, path: Path) -> bytes:
    try:
        return bytes(model.SerializeToString(deterministic=True))
    except (EncodeError, ValueError) as error:
        raise CompileError(
            f"{path.name}: more than 2 GiB without its large initializers; ONNX cannot store such a graph"
        ) from error
