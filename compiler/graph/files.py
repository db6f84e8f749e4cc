"""Reading a source model: one self-contained, valid ONNX file, or an error that says what to export differently."""

from __future__ import annotations

from pathlib import Path

from penstock.errors import CompileError, InvalidInput, missing_extra

try:
    import onnx
    from google.protobuf.message import DecodeError
except ImportError as error:  # the library is behind an extra
    raise missing_extra("onnx", "compile", "compiling models") from error

MAX_MODEL_BYTES = 2 * 1024**3 - 1  # protobuf cannot hold more in one message


def read(path: Path, *, field: str) -> onnx.ModelProto:
    """A checked model with its external data, if any, brought in.

    Args:
        field: the recipe's name for it, for messages.

    Raises:
        InvalidInput: no such file. CompileError: not a valid ONNX model, or too large for one file.
    """
    return _read(path, field)[0]


def self_contained(path: Path, directory: Path, *, field: str) -> Path:
    """The same model as exactly one file: ``path`` itself, or a copy in ``directory`` with external data brought in.

    Raises:
        InvalidInput, CompileError: as :func:`read`.
    """
    model, has_external_data = _read(path, field)
    if not has_external_data:
        return path
    whole = directory / f"{field}.whole.onnx"
    write(model, whole)
    return whole


def write(model: onnx.ModelProto, path: Path) -> None:
    """Same model, same bytes."""
    path.write_bytes(model.SerializeToString(deterministic=True))


def _read(path: Path, field: str) -> tuple[onnx.ModelProto, bool]:
    if not path.is_file():
        raise InvalidInput(f"{field}: {path}: no such file", field=field)
    try:
        model = onnx.load(str(path), load_external_data=False)
        has_external_data = any(t.data_location == onnx.TensorProto.EXTERNAL for t in model.graph.initializer)
        if has_external_data:
            onnx.load_external_data_for_model(model, str(path.parent))
        if model.ByteSize() > MAX_MODEL_BYTES:
            raise CompileError(f"{field}: {path.name}: more than 2 GiB; such models cannot be packed as one ONNX file")
        onnx.checker.check_model(model)
    except (DecodeError, OSError, ValueError, onnx.checker.ValidationError) as error:
        raise CompileError(f"{field}: {path.name} is not a valid ONNX model: {str(error).strip()[:500]}") from error
    return model, has_external_data
