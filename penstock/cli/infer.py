"""``penstock infer``: one inference from files, from JSON, or from standard input."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from penstock.cli.output import output_option, print_fields, print_table
from penstock.errors import InvalidInput

if TYPE_CHECKING:
    from penstock.sdk.call import InferResult
    from penstock.wire.tensors import Array

_MAX_JSON_BYTES = 64 * 1024 * 1024
_SHOWN_CHARS = 400


@click.command(
    epilog="""\b
Examples:
  penstock infer unix:///run/penstock/agent.sock digits --input digit.npy
  penstock infer grpc://127.0.0.1:8001 digits --input x=batch.npy --version v2 --timeout 0.5
  penstock infer http://127.0.0.1:8000 adder --json '{"a": [[1, 2]], "b": [[3, 4]]}'
  cat request.json | penstock infer http://127.0.0.1:8000 adder --json - -o json

A JSON object gives inputs by name, or columns by name where the model says which it takes; a JSON list is the only
input. Rows come first: [[1, 2]] is one row.""",
)
@click.argument("target")
@click.argument("model")
@click.option("-i", "--input", "files", multiple=True, metavar="[NAME=]FILE.npy", help="An input; repeat for several.")
@click.option("--json", "text", metavar="JSON", help="All inputs as JSON; '-' reads standard input.")
@click.option("--version", default="", metavar="TAG|DIGEST", help="Version to ask; the server's default otherwise.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=30.0,
    show_default=True,
    metavar="S",
    help="Seconds, all tries together.",
)
@click.option(
    "--token", envvar="PENSTOCK_TOKEN", default="", show_envvar=True, help="Credential, where there are tenants."
)
@click.option("--explain", is_flag=True, help="Ask an agent who answered each row, and why.")
@output_option
def command(
    target: str,
    model: str,
    files: tuple[str, ...],
    text: str | None,
    version: str,
    timeout: float,
    token: str,
    explain: bool,
    output: str,
) -> None:
    """Send one inference to TARGET (grpc://host:port, http://host:port or unix:///path) for MODEL."""
    if bool(files) == (text is not None):
        raise click.UsageError("give inputs either by --input or by --json")
    inputs = _from_files(files) if files else _from_json(text or "")
    from penstock.sdk.client import Client  # here, so that --help does not pay for numpy

    with Client(target, timeout=timeout, token=token) as client:
        parameters = {"explain": True} if explain else None
        result = client.infer(model, inputs, version=version, parameters=parameters, labels=True)
    if output == "json":
        import msgspec

        # one line: a document with a line for every number of a tensor helps no reader
        click.echo(msgspec.json.encode(_document(result)))
    else:
        _print(result)


def _from_files(files: tuple[str, ...]) -> Any:
    """Read inputs from files: one unnamed file is the only input; named ones go by name."""
    if len(files) == 1 and "=" not in files[0]:
        return _load(files[0])
    inputs = {}
    for file in files:
        name, separator, path = file.partition("=")
        if not separator:
            raise click.UsageError(f"--input {file}: with several inputs each needs a name, NAME={file}")
        if name in inputs:
            raise click.UsageError(f"--input {name}: given twice")
        inputs[name] = _load(path)
    return inputs


def _load(path: str) -> Array:
    from numpy.lib import format as npy  # not np.load: that also opens archives and pickles

    try:
        with Path(path).open("rb") as file:
            array: Array = npy.read_array(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InvalidInput(f"{path}: not a readable .npy file: {error}", field="input") from error
    return array


def _from_json(text: str) -> Any:
    import msgspec

    data: bytes | str = text
    if text == "-":
        data = sys.stdin.buffer.read(_MAX_JSON_BYTES + 1)
        if len(data) > _MAX_JSON_BYTES:
            raise InvalidInput(f"standard input has more than {_MAX_JSON_BYTES} bytes", field="json")
    try:
        inputs = msgspec.json.decode(data)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise InvalidInput(f"--json: not valid JSON: {error}", field="json") from error
    if not isinstance(inputs, dict | list):
        raise InvalidInput("--json: give an object of inputs by name, or a list for the only input", field="json")
    return inputs


def _document(result: InferResult) -> dict[str, object]:
    from penstock.wire.tensors import datatype_of

    return {
        "model": result.model,
        "version": result.version,
        "parameters": dict(result.parameters),
        "classes": result.classes,
        "outputs": {
            name: {"datatype": datatype_of(array), "shape": array.shape, "data": _values(array)}
            for name, array in result.outputs.items()
        },
    }


def _print(result: InferResult) -> None:
    from penstock.wire.tensors import datatype_of

    fields: dict[str, object] = {"model": result.model, "version": result.version, **result.parameters}
    if result.classes:
        fields["classes"] = _cut(", ".join(result.classes))
    print_fields(fields)
    click.echo()
    print_table(
        ("output", "datatype", "shape", "values"),
        [
            (name, datatype_of(array), "x".join(map(str, array.shape)), _shown(array))
            for name, array in result.outputs.items()
        ],
    )


def _values(array: Array) -> Any:
    values = array.tolist()
    return _as_text(values) if array.dtype.kind == "O" else values


def _as_text(values: Any) -> Any:
    if isinstance(values, list):
        return [_as_text(value) for value in values]
    return values.decode("utf-8", "replace") if isinstance(values, bytes) else values


def _shown(array: Array) -> str:
    import numpy as np

    if array.dtype.kind == "O":
        text = str(_values(array))
    else:
        text = np.array2string(array, precision=4, suppress_small=True, threshold=32, separator=", ")
    return _cut(" ".join(text.split()))


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]} ..."
