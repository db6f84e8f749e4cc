"""Hugging Face directories through both exporters, in their toolchains, offline."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compiler import sources
from compiler.sources import Exported, huggingface
from penstock.errors import CompileError, ConfigError
from penstock.runtime import EngineOptions, load_engine

Export = Callable[..., Exported]


def shapes(made: Exported) -> dict[str, tuple[int, ...]]:
    engine = load_engine("onnx", made.model, EngineOptions())
    return {spec.name: spec.shape for spec in (*engine.inputs, *engine.outputs)}


def test_a_classifier_through_optimum(tiny_models: Path, exported: Export) -> None:
    made = exported("classifier", tiny_models)
    assert shapes(made) == {
        "input_ids": (-1, -1),
        "attention_mask": (-1, -1),
        "token_type_ids": (-1, -1),
        "logits": (-1, 3),
    }
    assert made.facts["labels"] == ["calm", "glad", "sad"]
    assert made.facts["task"] == "text-classification"
    assert {path.name for path in made.files} == {"config.json", "tokenizer.json"}
    assert sorted(path.name for path in made.model.parent.iterdir()) == ["config.json", "model.onnx", "tokenizer.json"]
    assert str(tiny_models).encode() not in made.model.read_bytes()


def test_a_sentence_encoder_keeps_its_pooling(tiny_models: Path, exported: Export) -> None:
    made = exported("sentences", tiny_models)
    assert shapes(made) == {"input_ids": (-1, -1), "attention_mask": (-1, -1), "sentence_embedding": (-1, 32)}
    engine = load_engine("onnx", made.model, EngineOptions())
    ids, mask = np.array([[5, 6, 7, 8], [5, 6, 0, 0]]), np.array([[1, 1, 1, 1], [1, 1, 0, 0]])
    padded = engine.run({"input_ids": ids, "attention_mask": mask})["sentence_embedding"]
    short = engine.run({"input_ids": ids[1:, :2], "attention_mask": mask[1:, :2]})["sentence_embedding"]
    np.testing.assert_allclose(padded[1:], short, atol=1e-5, err_msg="padding must not count")
    np.testing.assert_allclose(np.linalg.norm(padded, axis=1), 1, atol=1e-5)


def test_an_image_classifier_through_transformers_5(
    tiny_models: Path, exported: Export, toolchain: Callable[[str], str]
) -> None:
    toolchain("transformers5")
    made = exported("images", tiny_models, toolchain="transformers5")
    assert shapes(made) == {"pixel_values": (-1, 3, 16, 16), "logits": (-1, 5)}
    assert made.facts["versions"]["transformers"].startswith("5.")
    assert "labels" not in made.facts, "LABEL_0 is no name"


def test_a_head_that_would_get_random_weights_is_refused(tiny_models: Path, exported: Export) -> None:
    with pytest.raises(
        CompileError, match=r"has no weights for cls\.predictions.*BertForSequenceClassification is for"
    ):
        exported("classifier", tiny_models, task="fill-mask")


def test_transformers_5_exports_the_class_and_no_other_task(tiny_models: Path, exported: Export) -> None:
    with pytest.raises(ConfigError, match="takes the class as it is, which is for text-classification"):
        exported("classifier", tiny_models, task="fill-mask", toolchain="transformers5")


def test_a_language_model_is_recognised(tiny_models: Path) -> None:
    assert sources.detect("language", tiny_models).kind == "llm"


@pytest.mark.parametrize(
    ("config", "task"),
    [
        ({"architectures": ["BertForSequenceClassification"]}, "text-classification"),
        ({"architectures": ["Wav2Vec2ForSequenceClassification"], "model_type": "wav2vec2"}, "audio-classification"),
        ({"architectures": ["ViTModel"]}, "feature-extraction"),
        ({"architectures": ["DistilBertForMaskedLM"]}, "fill-mask"),
        ({"architectures": ["T5Model"], "is_encoder_decoder": True}, "feature-extraction"),
        ({"architectures": ["MarianMTModel"], "is_encoder_decoder": True}, "text2text-generation"),
        ({"architectures": ["BartForConditionalGeneration"], "is_encoder_decoder": True}, "text2text-generation"),
        ({"architectures": ["VisionEncoderDecoderModel"], "is_encoder_decoder": True}, "image-to-text"),
        (
            {"architectures": ["WhisperForConditionalGeneration"], "is_encoder_decoder": True},
            "automatic-speech-recognition",
        ),
    ],
)
def test_the_task_of_a_class(config: dict[str, Any], task: str) -> None:
    assert huggingface.task_of(config) == task


@pytest.mark.parametrize(
    "config", [{}, {"architectures": ["T5ForConditionalGeneration"]}, {"architectures": "no list"}]
)
def test_a_class_that_tells_no_task(config: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"source.task: .* set it in Optimum's words"):
        huggingface.task_of(config)


@pytest.mark.parametrize(
    ("id2label", "labels"),
    [
        ({"1": "b", "0": "a", "10": "k", "2": "c"}, ("a", "b", "c", "k")),
        ({"0": "LABEL_0", "1": "LABEL_1"}, ()),
        ({"a": "0"}, ()),
        (None, ()),
    ],
)
def test_labels_in_order_of_their_numbers(id2label: Any, labels: tuple[str, ...]) -> None:
    assert huggingface.labels_of({"id2label": id2label}) == labels


def test_an_encoder_decoder_needs_optimum(tmp_path: Path, exported: Export) -> None:
    directory = tmp_path / "t5"
    directory.mkdir()
    config = '{"architectures": ["T5ForConditionalGeneration"], "is_encoder_decoder": true}'
    (directory / "config.json").write_text(config)
    (directory / "model.safetensors").write_bytes(b"")
    with pytest.raises(ConfigError, match="is an encoder-decoder, whose parts only Optimum exports"):
        exported("t5", tmp_path, toolchain="transformers5")
