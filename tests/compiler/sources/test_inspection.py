"""What can be seen of a model without running it, and the guess with its reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import helper

from compiler import sources
from compiler.sources import inspection
from compiler.sources.inspection import Seen
from penstock.errors import InvalidInput
from tests.factories import onnx_model


def onnx_file(tmp_path: Path, outputs: dict[str, list[Any]], last: str = "Identity", batch: Any = "batch") -> Path:
    first = next(iter(outputs))
    nodes = [helper.make_node(last, ["x"], ["made"]), helper.make_node("Identity", ["made"], [first])]
    nodes += [helper.make_node("Identity", ["x"], [name]) for name in list(outputs)[1:]]
    rank = len(next(iter(outputs.values())))
    size = [batch, *next(iter(outputs.values()))[1:]] if rank else [batch]
    path = tmp_path / "m.onnx"
    onnx.save(onnx_model(nodes, inputs={"x": size}, outputs=outputs), str(path))
    return path


def seen(path: Path) -> Seen:
    return inspection.look(sources.detect(path.name, path.parent))


@pytest.mark.parametrize(
    ("outputs", "last", "task", "layout"),
    [
        ({"logits": ["batch", 4]}, "Relu", "classification", ""),
        ({"y": ["batch", 4]}, "Softmax", "classification", ""),
        ({"y": ["batch", 1]}, "Sigmoid", "classification", ""),
        ({"y": ["batch", 1]}, "Relu", "regression", ""),
        ({"sentence_embedding": ["batch", 8]}, "Relu", "embedding", ""),
        ({"last_hidden_state": ["batch", "tokens", 8]}, "Relu", "embedding", ""),
        ({"y": ["batch", "steps", 97]}, "Softmax", "ocr", ""),
        ({"y": ["batch", 3, 8, 8]}, "Relu", "segmentation", ""),
        ({"output0": ["batch", 22, 8400]}, "Relu", "detection", "yolo"),
        ({"output0": ["batch", 8400, 85]}, "Relu", "detection", "yolo-objectness"),
        ({"y": ["batch", 300, 6]}, "Relu", "detection", "rows"),
    ],
)
def test_tasks_of_outputs(tmp_path: Path, outputs: dict[str, list[Any]], last: str, task: str, layout: str) -> None:
    found = seen(onnx_file(tmp_path, outputs, last))
    assert (found.task, found.layout, found.output) == (task, layout, "")
    assert next(iter(outputs)) in found.why_task


def test_the_scored_one_of_several_outputs(tmp_path: Path) -> None:
    found = seen(onnx_file(tmp_path, {"features": ["batch", 4], "logits": ["batch", 4]}))
    assert found.output == "logits"


def test_a_fixed_batch_of_several_is_a_problem_before_anything_is_compiled(tmp_path: Path) -> None:
    assert "fixed first dimension of 4" in seen(onnx_file(tmp_path, {"y": [4, 4]}, batch=4)).problems[0]
    assert not seen(onnx_file(tmp_path, {"y": [1, 4]}, batch=1)).problems


def hugging_face(path: Path, config: dict[str, Any], **files: Any) -> Path:
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config))
    (path / "model.safetensors").touch()
    for name, content in files.items():
        (path / f"{name}.json").write_text(json.dumps(content))
    return path


def test_a_text_classifier(tmp_path: Path) -> None:
    config = {"architectures": ["BertForSequenceClassification"], "id2label": {"0": "no", "1": "yes"}}
    found = seen(hugging_face(tmp_path / "dir", config, tokenizer={}))
    assert (found.task, found.feeds, found.labels, found.output) == ("classification", "text", ("no", "yes"), "logits")


def test_a_regression_has_one_number(tmp_path: Path) -> None:
    config = {"architectures": ["BertForSequenceClassification"], "problem_type": "regression"}
    assert seen(hugging_face(tmp_path / "dir", config)).task == "regression"


def test_an_image_classifier_brings_its_preprocessing(tmp_path: Path) -> None:
    config = {"architectures": ["ViTForImageClassification"], "image_size": 16}
    preprocessing = {
        "do_resize": True,
        "size": {"shortest_edge": 20},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": 16, "width": 16},
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.25, 0.25, 0.25],
    }
    found = seen(hugging_face(tmp_path / "dir", config, preprocessor_config=preprocessing))
    assert found.feeds == "images"
    assert found.images == {
        "resize": 20,
        "resample": "bicubic",
        "center_crop": [16, 16],
        "normalize": {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]},
    }


def test_a_sentence_encoder_is_an_embedding(tmp_path: Path) -> None:
    found = seen(hugging_face(tmp_path / "dir", {"architectures": ["BertModel"]}, modules=[]))
    assert (found.task, found.output) == ("embedding", "sentence_embedding")


def test_a_task_that_has_no_certificate_says_so(tmp_path: Path) -> None:
    found = seen(hugging_face(tmp_path / "dir", {"architectures": ["BertForTokenClassification"]}))
    assert "has no certificate" in found.problems[0]


def test_an_encoder_decoder_generates(tmp_path: Path) -> None:
    config = {"architectures": ["T5ForConditionalGeneration"], "is_encoder_decoder": True}
    found = seen(hugging_face(tmp_path / "t5", config, tokenizer={}))
    assert (found.task, found.feeds, found.problems) == ("seq2seq", "text", ())
    assert found.why_task == "T5ForConditionalGeneration is for text2text-generation, by greedy search"


def test_a_reader_of_pictures_brings_the_preprocessing_of_its_encoder(tmp_path: Path) -> None:
    config = {
        "architectures": ["VisionEncoderDecoderModel"],
        "is_encoder_decoder": True,
        "encoder": {"image_size": 384},
    }
    found = seen(hugging_face(tmp_path / "trocr", config, preprocessor_config={"size": 384}, tokenizer={}))
    assert (found.task, found.feeds, found.images) == ("seq2seq", "images", {"resize": 384})


def test_a_listener_takes_arrays(tmp_path: Path) -> None:
    config = {"architectures": ["WhisperForConditionalGeneration"], "is_encoder_decoder": True}
    found = seen(hugging_face(tmp_path / "whisper", config, preprocessor_config={}, tokenizer={}))
    assert (found.task, found.feeds) == ("seq2seq", "arrays")


def test_python_is_read_and_not_run(tmp_path: Path) -> None:
    (tmp_path / "f.py").write_text("raise SystemExit\nfrom sklearn.linear_model import Ridge\ndef make(): ...")
    assert inspection.look(sources.detect("f.py:make", tmp_path)).framework == "sklearn"
    (tmp_path / "f.py").write_text("import torch.nn, sklearn\ndef make(): ...")
    assert inspection.look(sources.detect("f.py:make", tmp_path)).framework == ""
    (tmp_path / "f.py").write_text("def make(:")
    with pytest.raises(InvalidInput, match="cannot be read as Python"):
        inspection.look(sources.detect("f.py:make", tmp_path))
