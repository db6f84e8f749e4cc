"""KServe's first protocol, predictions as JSON: bodies to and from plain values. Pure.

``{"instances": [...]}`` is one entry a row, and answered row by row; ``{"inputs": ...}`` is one entry an input, and
answered output by output, as TensorFlow Serving has it. An entry is a value, where the model has one input, or an
object of values by name. Bytes that are no text are ``{"b64": "..."}``.
Source: KServe, "Predict Protocol - Version 1"; TensorFlow Serving, "RESTful API", predict.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from penstock.errors import InvalidInput
from penstock.rest import jsondata
from penstock.wire.inference import InferRequest, InferResponse
from penstock.wire.tensors import Array, TensorSpec, bytes_elements, listing

_B64 = "b64"


class PredictCall(msgspec.Struct, frozen=True):
    """A decoded request, and whether it is answered row by row."""

    request: InferRequest
    by_rows: bool


def decode_predict(body: bytes, specs: Sequence[TensorSpec], *, model: str, version: str = "") -> PredictCall:
    """Decode the body of ``POST /v1/models/{model}:predict``. Fields beside the data are ignored.

    Args:
        specs: the model's inputs.

    Raises:
        InvalidInput: malformed in any way; never anything else.
    """
    try:
        sent = msgspec.json.decode(body)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise InvalidInput(f"body: not valid JSON: {error}", field="body") from None
    if not isinstance(sent, dict) or ("instances" in sent) == ("inputs" in sent):
        raise InvalidInput(
            'body: expected an object with "instances" (one entry a row) or "inputs" (one entry an input)', field="body"
        )
    by_rows = "instances" in sent
    columns = _of_rows(sent["instances"], specs) if by_rows else _of_columns(sent["inputs"], specs)
    where = "instances" if by_rows else "inputs"
    inputs = {spec.name: _array(columns[spec.name], spec, f"{where}.{spec.name}") for spec in specs}
    return PredictCall(InferRequest(model=model, version=version, inputs=inputs), by_rows)


def encode_prediction(response: InferResponse, call: PredictCall) -> bytes:
    """Encode an answer the way its request was written.

    Raises:
        InvalidInput: rows are wanted, and an output has none.
    """
    outputs = {name: _nested(array, f"outputs.{name}") for name, array in response.outputs.items()}
    document: dict[str, Any]
    if not call.by_rows:
        document = {"outputs": next(iter(outputs.values())) if len(outputs) == 1 else outputs}
    else:
        rows = {len(values) if isinstance(values, list) else None for values in outputs.values()}
        if len(rows) != 1 or None in rows:
            raise InvalidInput('instances: not all outputs have rows; ask with "inputs"', field="instances")
        if len(outputs) == 1:
            document = {"predictions": next(iter(outputs.values()))}
        else:
            of_rows = zip(*outputs.values(), strict=True)
            document = {"predictions": [dict(zip(outputs, row, strict=True)) for row in of_rows]}
    if response.parameters:
        document["parameters"] = response.parameters
    return msgspec.json.encode(document)


def _of_rows(instances: object, specs: Sequence[TensorSpec]) -> dict[str, list[Any]]:
    if not isinstance(instances, list) or not instances:
        raise InvalidInput(
            "instances: expected a list with one entry for each row, and at least one", field="instances"
        )
    names = [spec.name for spec in specs]
    columns: dict[str, list[Any]] = {name: [] for name in names}
    for at, row in enumerate(instances):
        for name, value in _by_name(row, names, specs, f"instances[{at}]").items():
            columns[name].append(value)
    return columns


def _of_columns(inputs: object, specs: Sequence[TensorSpec]) -> dict[str, Any]:
    return dict(_by_name(inputs, [spec.name for spec in specs], specs, "inputs"))


def _by_name(entry: object, names: Sequence[str], specs: Sequence[TensorSpec], field: str) -> Mapping[str, Any]:
    """Return the values of an entry by input; the value alone is that of the only input."""
    if isinstance(entry, dict) and not (_B64 in entry and _B64 not in names):
        if set(entry) != set(names):
            given = ", ".join(map(repr, sorted(entry)))[:200] or "nothing"
            raise InvalidInput(f"{field}: has {given}; the model takes {listing(specs)}", field=field)
        return entry
    if len(names) != 1:
        raise InvalidInput(f"{field}: expected an object by name; the model takes {listing(specs)}", field=field)
    return {names[0]: entry}


def _array(value: object, spec: TensorSpec, field: str) -> Array:
    if spec.datatype == "BYTES":
        value = _with_bytes(value, field)
    return jsondata.of_nested(value, spec.datatype, field=field)


def _with_bytes(value: object, field: str) -> object:
    """Replace ``{"b64": ...}`` wherever it stands."""
    if isinstance(value, list):
        return [_with_bytes(item, field) for item in value]
    if not isinstance(value, dict):
        return value
    text = value.get(_B64)
    try:
        if len(value) != 1 or not isinstance(text, str):
            raise ValueError("not an object with b64 alone")
        return base64.b64decode(text, validate=True)
    except (ValueError, binascii.Error) as error:
        raise InvalidInput(f"{field}: an object is no text: {error}", field=field) from None


def _nested(array: Array, field: str) -> Any:
    if array.dtype.kind not in "OSU":
        return array.tolist()
    texts = np.empty(array.size, dtype=object)
    texts[:] = [_text(item) for item in bytes_elements(array, field=field)]
    return texts.reshape(array.shape).tolist()


def _text(item: bytes) -> str | dict[str, str]:
    try:
        return item.decode()
    except UnicodeDecodeError:
        return {_B64: base64.b64encode(item).decode()}
