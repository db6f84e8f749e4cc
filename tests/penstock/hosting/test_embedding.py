"""Texts become rows, and rows vectors: padding, types, prefixes, and what is refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from penstock.artifact.variant_files import VariantFiles
from penstock.errors import ArtifactError, Internal, InvalidInput, MissingExtra
from penstock.generation import row_tokenizer
from penstock.generation.plane import EmbeddingRequest
from penstock.hosting import embedding
from penstock.hosting.embedding import Embedding
from penstock.policy.text_rows import EmbeddingSpec
from penstock.wire.inference import InferResponse
from penstock.wire.tensors import Array, TensorSpec
from tests import encoder

LONG = "the dog sleeps on a mat by night " * 5
TEXTS = ("the dog", "river runs by night", LONG, "a", "the dog sleeps on 漢 é", "zebra")


def request(*inputs: Any, **more: Any) -> EmbeddingRequest:
    return EmbeddingRequest(model=encoder.NAME, inputs=inputs, **more)


def load(folder: Path, *, max_rows: int = 16, **changes: Any) -> Embedding:
    source = encoder.directory(folder)
    found = embedding.load(
        encoder.spec(**changes), VariantFiles(weights=source / "model.onnx", golden=None), max_rows=max_rows
    )
    assert found is not None
    return found


class Asked:
    """The encoder by onnxruntime alone; ``calls`` are the arrays that it was asked with."""

    def __init__(self, folder: Path) -> None:
        self._session = ort.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
        self.calls: list[Mapping[str, Array]] = []

    async def infer(self, inputs: Mapping[str, Array]) -> InferResponse:
        self.calls.append(inputs)
        (vectors,) = self._session.run(None, dict(inputs))
        return InferResponse(model=encoder.NAME, outputs={"sentence_embedding": vectors}, parameters={"by": "ort"})


async def test_texts_of_any_length_together_have_the_vectors_that_they_have_alone(tmp_path: Path) -> None:
    texts, asked = load(tmp_path), Asked(tmp_path)
    rows = await embedding.tokenized(texts, request(*TEXTS))
    made = await embedding.embed(texts, rows, asked.infer)
    assert len(asked.calls) == 2, "rows of 16 tokens, and of 48"
    for text, vector in zip(TEXTS, made.vectors, strict=True):
        np.testing.assert_allclose(vector, encoder.expected(text), atol=1e-6)
    assert made.tokens == sum(len(encoder.ids_of(text)) for text in TEXTS)
    assert [dict(account) for account in made.accounts] == [{"by": "ort"}] * 2


async def test_where_rows_change_each_other_each_text_is_asked_alone_and_without_padding(tmp_path: Path) -> None:
    texts, asked = load(tmp_path, max_rows=1), Asked(tmp_path)
    rows = texts.tokenized(request("the dog", "a mat by night"))
    made = await embedding.embed(texts, rows, asked.infer)
    assert [call["input_ids"].tolist() for call in asked.calls] == [[list(row.ids)] for row in rows]
    np.testing.assert_allclose(made.vectors[1], encoder.expected("a mat by night"), atol=1e-6)


async def test_ids_are_taken_as_they_are(tmp_path: Path) -> None:
    texts, asked = load(tmp_path), Asked(tmp_path)
    rows = texts.tokenized(request((2, 4, 5, 3), (5,)))
    made = await embedding.embed(texts, rows, asked.infer)
    assert made.tokens == 5
    np.testing.assert_allclose(made.vectors[1], encoder.expected([5]), atol=1e-6)


def test_padding_goes_where_the_tokenizer_puts_it(tmp_path: Path) -> None:
    types = TensorSpec(name="token_type_ids", datatype="INT32", shape=(-1, -1))
    spec = EmbeddingSpec(max_tokens=64, pad_id=9, pad_type_id=3, pads_left=True)
    texts = load(tmp_path, embedding=spec, inputs=(*encoder.spec().inputs, types))
    rows = texts.tokenized(request("the dog"))
    (group,) = texts.groups(rows)
    made = texts.arrays(rows, group)
    assert made["input_ids"].tolist() == [[9] * 12 + [2, 4, 5, 3]]
    assert made["attention_mask"].tolist() == [[0] * 12 + [1] * 4]
    assert made["token_type_ids"].tolist() == [[3] * 12 + [0] * 4]
    assert made["token_type_ids"].dtype == np.int32


def test_what_a_model_was_trained_with_goes_before_each_text(tmp_path: Path) -> None:
    spec = EmbeddingSpec(max_tokens=64, prefix="river ", is_lower_case=True)
    (row,) = load(tmp_path, embedding=spec).tokenized(request("  The DOG \n"))
    assert list(row.ids) == encoder.ids_of("river the dog")


@pytest.mark.parametrize(
    ("asked", "field", "words"),
    [
        (request("the " * 63), "input", "65 tokens, and the model takes at most 64"),
        (request("a", "the " * 63), r"input\[1\]", "65 tokens, and the model takes at most 64"),
        (request("x" * 4097), "input", "4097 characters, and the model takes 64 tokens"),
        (request((1,) * 65), "input", "65 tokens"),
        (request((1, 16)), "input", "token id 16 is not in the vocabulary, which has 0 to 15"),
        (request("a", dimensions=4), "dimensions", "4 asked for, but the model gives 8"),
    ],
)
def test_what_is_too_long_or_none_is_refused_in_words(
    tmp_path: Path, asked: EmbeddingRequest, field: str, words: str
) -> None:
    texts = load(tmp_path)
    with pytest.raises(InvalidInput, match=f"^{field}: {words}"):
        texts.tokenized(asked)
    assert len(texts.tokenized(request("the " * 62, dimensions=8))[0].ids) == 64


async def test_a_model_that_gives_no_numbers_is_told(tmp_path: Path) -> None:
    texts = load(tmp_path)

    async def infer(inputs: Mapping[str, Array]) -> InferResponse:
        return InferResponse(model="m", outputs={"sentence_embedding": np.full((1, 8), np.nan)})

    with pytest.raises(Internal, match="no finite vector"):
        await embedding.embed(texts, texts.tokenized(request("a")), infer)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"score_output": "tokens", "outputs": (TensorSpec(name="tokens", datatype="FP32", shape=(-1, -1, 8)),)},
         "output 'tokens' is no vector for each text"),
        ({"inputs": (TensorSpec(name="x", datatype="FP32", shape=(-1, 4)),)}, "inputs x are not made of a text"),
        ({"inputs": (TensorSpec(name="input_ids", datatype="INT64", shape=(-1, 32)),)}, "takes 32 tokens, and texts"),
        ({"embedding": EmbeddingSpec(max_tokens=8, tokenizer="other.json")}, "no file other.json"),
        ({"embedding": EmbeddingSpec(max_tokens=8, tokenizer="model.onnx")}, "model.onnx is not one of the Hugging"),
    ],
)  # fmt: skip
def test_what_does_not_fit_the_model_is_no_declaration(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ArtifactError, match=words):
        load(tmp_path, **changes)


def test_without_the_library_rows_are_answered_and_texts_say_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(content: bytes, *, name: str) -> Any:
        raise MissingExtra("turning text into tokens needs tokenizers; install penstock[generate]")

    monkeypatch.setattr(row_tokenizer, "library_of", missing)
    with pytest.raises(MissingExtra, match=r"penstock\[generate\]"):
        load(tmp_path).tokenized(request("a"))
