"""What a recipe's model names, found by its name and its files alone."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from compiler import sources
from compiler.sources import SourceSection
from penstock.errors import CompileError, ConfigError, InvalidInput, PenstockError


def put(path: Path, content: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def hugging_face(path: Path, architecture: str) -> Path:
    put(path / "config.json", json.dumps({"architectures": [architecture]}))
    put(path / "model.safetensors")
    return path


@pytest.mark.parametrize(
    ("name", "kind"),
    [("m.onnx", "onnx"), ("m.ONNX", "onnx"), ("m.pt2", "program"), ("m.joblib", "sklearn"), ("m.gguf", "llm")],
)
def test_files_by_suffix(tmp_path: Path, name: str, kind: str) -> None:
    put(tmp_path / name)
    assert sources.detect(name, tmp_path).kind == kind


@pytest.mark.parametrize(
    ("architecture", "kind"),
    [("BertForSequenceClassification", "huggingface"), ("LlamaForCausalLM", "llm"), ("BertModel", "huggingface")],
)
def test_hugging_face_directories_by_class(tmp_path: Path, architecture: str, kind: str) -> None:
    hugging_face(tmp_path / "dir", architecture)
    found = sources.detect("dir", tmp_path)
    assert found.kind == kind
    assert architecture in found.what


def test_a_language_model_may_be_exported_as_one_graph_when_that_is_said(tmp_path: Path) -> None:
    hugging_face(tmp_path / "dir", "GPT2ForCausalLM")
    section = SourceSection(framework="huggingface", task="text-generation")
    assert sources.detect("dir", tmp_path, section).kind == "huggingface"


def test_a_directory_with_one_onnx_file_is_that_file(tmp_path: Path) -> None:
    put(tmp_path / "dir" / "model.onnx")
    put(tmp_path / "dir" / "config.json", "{}")
    assert sources.detect("dir", tmp_path).location == tmp_path / "dir" / "model.onnx"
    put(tmp_path / "dir" / "other.onnx")
    with pytest.raises(InvalidInput, match="no weights"):
        sources.detect("dir", tmp_path)
    (tmp_path / "dir" / "config.json").unlink()
    with pytest.raises(InvalidInput, match="it has 2 ONNX files, name one of them"):
        sources.detect("dir", tmp_path)


def test_factories_by_file_and_by_module(tmp_path: Path) -> None:
    put(tmp_path / "nets" / "small.py")
    by_file = sources.detect("nets/small.py:make", tmp_path)
    assert (by_file.kind, by_file.location, by_file.factory) == ("torch", tmp_path / "nets" / "small.py", "make")
    by_module = sources.detect("nets.small:make", tmp_path)
    assert (by_module.location, by_module.module) == (tmp_path / "nets" / "small.py", "nets.small")
    installed = sources.detect("torchvision.models:resnet18", tmp_path)
    assert (installed.kind, installed.location) == ("torch", tmp_path)
    estimator = sources.detect("nets/small.py:make", tmp_path, SourceSection(framework="sklearn"))
    assert estimator.kind == "sklearn"


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("absent.onnx", "absent.onnx: no such file or directory"),
        ("org/model", "hf download org/model --local-dir model, and name that directory"),
        ("https://host/m:v1", "is an address; download it"),
        ("absent.py:make", "absent.py: no such file"),
        ("two words:make", "is neither a .py file nor a module's name"),
        ("weights.pt", "weights without the model; write a factory"),
        ("weights.safetensors", "name the directory that also has config.json"),
        ("m.h5", "convert it with tf2onnx"),
        ("m.py", "say which function makes the model"),
        ("m.txt", "m.txt: expected .onnx, .pt2"),
        ("empty", "no Hugging Face directory"),
        ("damaged", "not a JSON object"),
    ],
)
def test_what_is_no_model_says_what_to_do(tmp_path: Path, model: str, message: str) -> None:
    for name in ("weights.pt", "weights.safetensors", "m.h5", "m.py", "m.txt", "damaged/model.safetensors"):
        put(tmp_path / name)
    put(tmp_path / "damaged" / "config.json", "[1, 2")
    (tmp_path / "empty").mkdir()
    with pytest.raises((InvalidInput, ConfigError), match=message) as raised:
        sources.detect(model, tmp_path)
    assert isinstance(raised.value, PenstockError)


def test_a_framework_that_it_is_not(tmp_path: Path) -> None:
    put(tmp_path / "m.onnx")
    with pytest.raises(ConfigError, match="'torch' given, but m.onnx is an ONNX file; leave it at \"auto\""):
        sources.detect("m.onnx", tmp_path, SourceSection(framework="torch"))


def test_language_models_are_not_exported_as_one_graph(tmp_path: Path) -> None:
    hugging_face(tmp_path / "dir", "LlamaForCausalLM")
    source = sources.detect("dir", tmp_path)
    with pytest.raises(CompileError, match="built for onnxruntime-genai"):
        sources.export(source, SourceSection(), tmp_path, progress=lambda share, note: None)


@pytest.mark.parametrize(
    ("model", "table", "toolchain"),
    [
        ("m.onnx", {}, ""),
        ("m.pt2", {}, "torch"),
        ("dir", {}, "optimum"),
        ("dir", {"toolchain": "transformers5"}, "transformers5"),
        ("f.py:make", {}, "torch"),
        ("f.py:make", {"framework": "sklearn"}, ""),
    ],
)
def test_the_toolchain_that_is_needed(tmp_path: Path, model: str, table: dict[str, str], toolchain: str) -> None:
    for name in ("m.onnx", "m.pt2", "f.py"):
        put(tmp_path / name)
    hugging_face(tmp_path / "dir", "BertModel")
    section = msgspec.convert(table, SourceSection)
    assert sources.toolchain_of(sources.detect(model, tmp_path, section), section) == toolchain
