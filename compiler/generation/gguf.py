"""The header of a GGUF file: which architecture it holds and how its tensors are quantized. Reads no weights.

Source: the GGUF specification, version 3 (ggml-org/ggml, docs/gguf.md). The file is untrusted: every count and
length is checked against what is left of the file before anything is read. Does not decide what may be compiled from
it, except that :func:`check` refuses tensor types that no reader of ours can turn back into floats.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from penstock.errors import CompileError, InvalidInput

MAX_ENTRIES = 1_000_000  # tensors, or metadata keys
MAX_STRING_BYTES = 1024 * 1024
_MAX_DIMENSIONS = 4
_MAX_NESTING = 4
_VERSIONS = (2, 3)

TENSOR_TYPES: Mapping[int, str] = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K",
    12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S",
    20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64",
    29: "IQ1_M", 30: "BF16", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4", 40: "NVFP4", 41: "Q1_0",
}  # fmt: skip
"""Names of ``enum ggml_type``; the numbers that are missing were withdrawn."""

READABLE = frozenset(TENSOR_TYPES.values()) - {"Q8_1", "Q8_K", "Q1_0"}
"""What the gguf library can dequantize. Q8_1 and Q8_K are made at run time only, and no file should hold them."""

_SCALARS: Mapping[int, struct.Struct] = {
    code: struct.Struct("<" + form)
    for code, form in {
        0: "B",
        1: "b",
        2: "H",
        3: "h",
        4: "I",
        5: "i",
        6: "f",
        7: "?",
        10: "Q",
        11: "q",
        12: "d",
    }.items()
}
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What a GGUF file says of itself.

    Attributes:
        architecture: ``general.architecture``, e.g. ``llama``.
        tensor_types: how many tensors of each type; a type that is not known is ``type 99``.
        has_tokenizer: a vocabulary is in the file.
    """

    architecture: str
    tensor_types: Mapping[str, int]
    has_tokenizer: bool


def read_header(path: Path) -> Header:
    """Read the header of a GGUF file.

    Raises:
        InvalidInput: no such file. CompileError: not a GGUF file, truncated, or hostile.
    """
    if not path.is_file():
        raise InvalidInput(f"{path}: no such file", field="source")
    with path.open("rb") as file:
        return _Reader(file, path).header()


def check(header: Header, name: str) -> None:
    """Refuse what cannot be turned into floats, or has no tokenizer.

    Raises:
        CompileError: which tensor type, and what to give instead.
    """
    unreadable = sorted(set(header.tensor_types) - READABLE)
    if unreadable:
        raise CompileError(
            f"{name}: {header.tensor_types[unreadable[0]]} tensors are of GGUF type {unreadable[0]}, which cannot be "
            "read back into floats; give a file in F16, BF16, Q8_0, Q4_K or a kin of theirs, or the Hugging Face "
            "directory"
        )
    if not header.has_tokenizer:
        raise CompileError(f"{name}: no tokenizer in the file (tokenizer.ggml.tokens); give the Hugging Face directory")


class _Reader:
    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file, self._name, self._left = file, path.name, path.stat().st_size

    def header(self) -> Header:
        if self._take(4) != b"GGUF":
            raise CompileError(f"{self._name} is not a GGUF file (it does not begin with GGUF)")
        version = self._scalar(4)
        if version not in _VERSIONS:
            raise CompileError(
                f"{self._name}: GGUF version {version}; versions {_VERSIONS[0]} and {_VERSIONS[1]} are read"
            )
        tensors, entries = self._count(10), self._count(10)
        metadata = dict(self._entry() for _ in range(entries))
        architecture = metadata.get("general.architecture")
        if not isinstance(architecture, str):
            raise CompileError(f"{self._name}: no general.architecture in the file; it is not a whole model")
        types = Counter(self._tensor_type() for _ in range(tensors))
        return Header(
            architecture=architecture,
            tensor_types=dict(sorted(types.items())),
            has_tokenizer=bool(metadata.get("tokenizer.ggml.tokens")),
        )

    def _entry(self) -> tuple[str, Any]:
        return self._string(), self._value(int(self._scalar(4)), depth=0)

    def _value(self, kind: int, *, depth: int) -> Any:
        """Read a scalar or string; of an array only how long it is."""
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY:
            return self._scalar(kind)
        inner, length = int(self._scalar(4)), int(self._scalar(10))
        if inner in _SCALARS:
            self._skip(length * _SCALARS[inner].size)
            return length
        if length > self._left or depth >= _MAX_NESTING:
            raise self._truncated()
        for _ in range(length):
            self._value(inner, depth=depth + 1)
        return length

    def _tensor_type(self) -> str:
        self._string()
        dimensions = int(self._scalar(4))
        if not 0 <= dimensions <= _MAX_DIMENSIONS:
            raise CompileError(f"{self._name}: a tensor with {dimensions} dimensions; GGUF allows {_MAX_DIMENSIONS}")
        self._skip(8 * dimensions)
        number = int(self._scalar(4))
        self._skip(8)
        return TENSOR_TYPES.get(number, f"type {number}")

    def _count(self, kind: int) -> int:
        number = int(self._scalar(kind))
        if number > MAX_ENTRIES:
            raise CompileError(f"{self._name}: says it has {number} entries; at most {MAX_ENTRIES} are read")
        return number

    def _string(self) -> str:
        length = int(self._scalar(10))
        if length > MAX_STRING_BYTES:
            raise CompileError(
                f"{self._name}: a text of {length} bytes in its header; at most {MAX_STRING_BYTES} are read"
            )
        return self._take(length).decode("utf-8", "replace")

    def _scalar(self, kind: int) -> Any:
        if kind not in _SCALARS:
            raise CompileError(
                f"{self._name}: metadata of unknown type {kind}; the file is damaged, or of a newer GGUF"
            )
        form = _SCALARS[kind]
        return form.unpack(self._take(form.size))[0]

    def _take(self, length: int) -> bytes:
        if length > self._left:
            raise self._truncated()
        self._left -= length
        data = self._file.read(length)
        if len(data) != length:
            raise self._truncated()
        return data

    def _skip(self, length: int) -> None:
        if length > self._left:
            raise self._truncated()
        self._left -= length
        self._file.seek(length, 1)

    def _truncated(self) -> CompileError:
        return CompileError(f"{self._name} is not a whole GGUF file: its header ends early; download it again")
