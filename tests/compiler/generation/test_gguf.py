"""GGUF headers: what is read of them, and that a hostile one costs nothing."""

from __future__ import annotations

import contextlib
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compiler.generation import gguf
from penstock.errors import CompileError, InvalidInput, PenstockError

Q4_0, Q8_K, FUTURE = 2, 15, 99


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def entry(name: str, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


def array(kind: int, length: int, items: bytes) -> bytes:
    return struct.pack("<IQ", kind, length) + items


def document(types: list[int], *, version: int = 3, architecture: str = "llama", tokens: int = 2) -> bytes:
    entries = [
        entry("general.alignment", 4, struct.pack("<I", 32)),
        entry("llama.rope.freq_base", 6, struct.pack("<f", 1e4)),
        entry("tokenizer.ggml.scores", 9, array(6, 3, struct.pack("<3f", 1, 2, 3))),
        entry("nested", 9, array(9, 1, array(8, 1, text("x")))),
    ]
    if architecture:
        entries.append(entry("general.architecture", 8, text(architecture)))
    if tokens:
        entries.append(entry("tokenizer.ggml.tokens", 9, array(8, tokens, text("ab") * tokens)))
    tensors = [text(f"t{n}") + struct.pack("<IQQIQ", 2, 4, 4, kind, 0) for n, kind in enumerate(types)]
    counts = struct.pack("<IQQ", version, len(tensors), len(entries))
    return b"GGUF" + counts + b"".join(entries) + b"".join(tensors)


def read(path: Path, data: bytes) -> gguf.Header:
    path.write_bytes(data)
    return gguf.read_header(path)


@pytest.mark.parametrize("version", [2, 3])
def test_architecture_types_and_tokenizer(tmp_path: Path, version: int) -> None:
    header = read(tmp_path / "m.gguf", document([0, Q4_0, Q4_0], version=version))
    assert header == gguf.Header(architecture="llama", tensor_types={"F32": 1, "Q4_0": 2}, has_tokenizer=True)
    gguf.check(header, "m.gguf")


@pytest.mark.parametrize(("kind", "name"), [(Q8_K, "Q8_K"), (FUTURE, "type 99")])
def test_a_quantization_that_cannot_be_read_is_named(tmp_path: Path, kind: int, name: str) -> None:
    header = read(tmp_path / "m.gguf", document([0, kind, kind]))
    with pytest.raises(CompileError, match=f"m.gguf: 2 tensors are of GGUF type {name}, .* give a file in F16"):
        gguf.check(header, "m.gguf")


def test_a_file_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CompileError, match="no tokenizer in the file"):
        gguf.check(read(tmp_path / "m.gguf", document([0], tokens=0)), "m.gguf")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "ends early"),
        (b"PK\x03\x04whatever", "is not a GGUF file"),
        (document([0], version=1), "GGUF version 1; versions 2 and 3 are read"),
        (document([0], architecture=""), "no general.architecture"),
        (document([0])[:-5], "ends early"),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**60, 1), "says it has 1152921504606846976 entries"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 2**62), "a text of 4611686018427387904 bytes"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + entry("x", 9, array(6, 2**61, b"")), "ends early"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + entry("x", 9, array(8, 2**61, b"")), "ends early"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + entry("x", 9, array(9, 1, b"") * 50), "ends early"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + entry("x", 77, b"1234"), "unknown type 77"),
    ],
)
def test_hostile_and_damaged_files(tmp_path: Path, data: bytes, message: str) -> None:
    with pytest.raises(CompileError, match=message):
        read(tmp_path / "m.gguf", data)


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="no such file"):
        gguf.read_header(tmp_path / "m.gguf")


@given(at=st.integers(0, 400), byte=st.integers(0, 255))
def test_a_changed_byte_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, at: int, byte: int) -> None:
    data = bytearray(document([0, Q4_0]))
    data[at % len(data)] = byte
    path = tmp_path_factory.getbasetemp() / "changed.gguf"
    path.write_bytes(data)
    with contextlib.suppress(PenstockError):
        gguf.read_header(path)
