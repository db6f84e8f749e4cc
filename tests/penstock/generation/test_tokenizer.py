"""Tokenizers from files: what they encode, what their tokens are in bytes, what makes two equal, what is refused."""

from __future__ import annotations

import json
import sys
import unicodedata
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.errors import ArtifactError, InvalidInput, MissingExtra
from penstock.generation import tokenizer
from tests.penstock.generation import small_tokenizers

KINDS = list(small_tokenizers.MAKERS)


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_gets_the_ids_that_the_library_gives(kind: str) -> None:
    loaded, oracle = tokenizer.load(small_tokenizers.files(kind)), small_tokenizers.library(kind)
    for text in ("", "Hello, world!", "日本 🙂", "<|im_start|>user"):
        assert loaded.encode(text) == oracle.encode(text).ids
        assert loaded.encode(text, add_special_tokens=False) == oracle.encode(text, add_special_tokens=False).ids


def test_cutting_and_padding_of_the_file_are_not_done() -> None:
    made = small_tokenizers.library("byte level").__class__.from_str(small_tokenizers.document("byte level"))
    made.enable_truncation(3)
    made.enable_padding(length=50)
    loaded = tokenizer.load({"tokenizer.json": made.to_str().encode()})
    assert loaded.encode("Hello, world!") == small_tokenizers.library("byte level").encode("Hello, world!").ids


def test_half_a_surrogate_pair_is_refused_with_its_place() -> None:
    loaded = tokenizer.load(small_tokenizers.files("byte level"))
    with pytest.raises(InvalidInput, match="U\\+D83D at character 3"):
        loaded.encode("hi \ud83d there")


@pytest.mark.parametrize(
    ("kind", "token", "expected"),
    [
        ("byte level", "Ġthe", b" the"),
        ("byte level", "<tool call>", b"<tool call>"),
        ("byte level", "<→>", "<→>".encode()),
        ("byte level", "<|im_end|>", b"<|im_end|>"),
        ("byte level", "ð", b"\xf0"),
        ("sentence piece", "▁the", b" the"),
        ("sentence piece", "<0xF0>", b"\xf0"),
        ("sentence piece", "</s>", b"</s>"),
        ("unigram", "▁", b" "),
        ("word piece", "##e", b"e"),
        ("word piece", "e", b" e"),
        ("words", "yes", b" yes"),
    ],
)
def test_a_token_is_known_in_bytes(kind: str, token: str, expected: bytes) -> None:
    loaded = tokenizer.load(small_tokenizers.files(kind))
    found = loaded.token_id(token)
    assert found is not None
    assert loaded.pieces.bytes_of(found) == expected


def test_facts_come_from_the_engines_configuration_first() -> None:
    files = small_tokenizers.files("byte level")
    plain = tokenizer.load(files).facts
    assert (plain.end_ids, plain.context_tokens) == (frozenset({1}), 128)
    assert plain.named == {"bos_token": "<s>", "eos_token": "</s>"}
    assert plain.vocabulary == small_tokenizers.library("byte level").get_vocab_size()
    pieces = tokenizer.load(files).pieces
    assert plain.longest_token_bytes == max(len(pieces.bytes_of(token)) for token in range(plain.vocabulary))
    files["generation_config.json"] = b'{"eos_token_id": 3}'
    assert tokenizer.load(files).facts.end_ids == frozenset({3})
    files["genai_config.json"] = b'{"model": {"eos_token_id": [1, 3], "context_length": 64}}'
    assert tokenizer.load(files).facts.end_ids == frozenset({1, 3})
    assert tokenizer.load(files).facts.context_tokens == 64


def test_a_context_of_1e30_is_none_and_tokens_may_be_objects() -> None:
    loaded = tokenizer.load(
        small_tokenizers.files("words", model_max_length=int(1e30), eos_token={"content": "<|im_end|>"}, bos_token=None)
    )
    assert loaded.facts.context_tokens is None
    assert loaded.facts.named == {"eos_token": "<|im_end|>"}
    assert loaded.facts.end_ids == frozenset({4})


def changed(kind: str, change: Any) -> dict[str, bytes]:
    document = json.loads(small_tokenizers.document(kind))
    change(document)
    return {"tokenizer.json": json.dumps(document).encode()}


def test_equal_tokenizers_have_equal_digests_however_they_are_written() -> None:
    def old_style(document: Any) -> None:
        merges = [" ".join(merge) if isinstance(merge, list) else merge for merge in document["model"]["merges"]]
        document["model"]["merges"] = merges
        document["model"]["vocab"] = dict(reversed(list(document["model"]["vocab"].items())))
        document["truncation"] = None

    digest = tokenizer.load(small_tokenizers.files("byte level")).facts.digest
    assert tokenizer.load(changed("byte level", old_style)).facts.digest == digest
    assert tokenizer.load(small_tokenizers.files("words")).facts.digest != digest


def test_the_same_words_under_other_ids_or_merged_otherwise_are_another_tokenizer() -> None:
    def swapped(document: Any) -> None:
        vocabulary = document["model"]["vocab"]
        vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]

    def merged(document: Any) -> None:
        document["model"]["merges"].reverse()

    def one_more(document: Any) -> None:
        document["added_tokens"][0]["special"] = False

    kinds = [tokenizer.load(changed("byte level", change)).facts.digest for change in (dict, swapped, merged, one_more)]
    assert len(set(kinds)) == 4


@pytest.mark.parametrize("kind", ["byte level", "sentence piece"])
@settings(max_examples=30)
@given(st.text(max_size=60), st.data())
def test_no_text_has_fewer_tokens_than_its_bytes_allow(kind: str, text: str, data: st.DataObject) -> None:
    loaded = LOADED[kind]
    text += data.draw(st.sampled_from(["", "<|im_start|>" * 9, "the " * 30, "<tool call>" * 3, "▁" * 50]))
    longest = loaded.facts.longest_token_bytes
    assert longest > 0
    assert len(loaded.encode(text)) * longest >= len(text.encode())


LOADED = {kind: tokenizer.load(small_tokenizers.files(kind)) for kind in ("byte level", "sentence piece")}


def test_a_mark_that_a_user_writes_out_is_three_bytes_of_one_token() -> None:
    def long_marks(document: Any) -> None:
        model = document["model"]
        for length in (2, 4, 8, 16):
            model["vocab"].setdefault("▁" * length, len(model["vocab"]))
            model["merges"].append(["▁" * (length // 2)] * 2)

    loaded, text = tokenizer.load(changed("sentence piece", long_marks)), "▁" * 63
    ids = loaded.encode(text, add_special_tokens=False)
    assert len(ids) == 4  # the normalizer begins with one more
    assert len(ids) * loaded.facts.longest_token_bytes >= len(text.encode())


def test_where_text_can_vanish_no_bound_is_told() -> None:
    for kind in ("unigram", "word piece", "words"):
        assert tokenizer.load(small_tokenizers.files(kind)).facts.longest_token_bytes == 0

    def without_a_byte(document: Any) -> None:
        del document["model"]["vocab"]["ð"]
        document["model"]["merges"] = []

    def stripping(document: Any) -> None:
        document["added_tokens"][0]["lstrip"] = True

    def folding(document: Any) -> None:
        document["normalizer"] = {"type": "NFKC"}

    for change in (without_a_byte, stripping, folding):
        assert tokenizer.load(changed("byte level", change)).facts.longest_token_bytes == 0


def test_composing_letters_shrinks_a_text_by_four_at_most() -> None:
    def composing(document: Any) -> None:
        document["normalizer"] = {"type": "NFC"}

    plain = tokenizer.load(small_tokenizers.files("byte level")).facts.longest_token_bytes
    assert tokenizer.load(changed("byte level", composing)).facts.longest_token_bytes == 4 * plain
    # the longest way to write each character: its parts, each by its longest other name
    longest: dict[str, int] = {}
    composed = [chr(code) for code in range(sys.maxunicode) if unicodedata.decomposition(chr(code))]
    for character in composed:
        parts = unicodedata.normalize("NFD", character)
        if len(parts) == 1:
            longest[parts] = max(longest.get(parts, 0), len(character.encode()))
    for character in {unicodedata.normalize("NFC", name) for name in [*composed, *map(chr, range(0xAC00, 0xD7A4))]}:
        parts = unicodedata.normalize("NFD", character)
        written = sum(max(longest.get(part, 0), len(part.encode())) for part in parts)
        assert written <= 4 * len(character.encode()), character


def decoder(value: Any) -> Any:
    return lambda document: document.update(decoder=value)


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({}, "no tokenizer.json; write one"),
        ({"tokenizer.json": b"{"}, "no JSON object"),
        ({"tokenizer.json": b"[]"}, "no JSON object"),
        ({"tokenizer.json": b"{}"}, "not one of the Hugging Face tokenizers library"),
        (small_tokenizers.files("words") | {"genai_config.json": b"\xff"}, "genai_config.json is no JSON object"),
        (
            changed(
                "byte level", decoder({"type": "CTC", "pad_token": "a", "word_delimiter_token": "|", "cleanup": True})
            ),
            "CTC",
        ),
        (changed("byte level", decoder({"type": "BPEDecoder", "suffix": "</w>"})), "BPEDecoder"),
        (
            changed(
                "byte level", decoder({"type": "Sequence", "decoders": [{"type": "Fuse"}, {"type": "ByteFallback"}]})
            ),
            "ByteFallback after others",
        ),
    ],
)
def test_what_cannot_be_loaded_is_refused_in_a_sentence(files: dict[str, bytes], says: str) -> None:
    with pytest.raises(ArtifactError, match=says):
        tokenizer.load(files)


def test_a_file_that_is_too_large_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer, "MAX_FILE_BYTES", 10)
    with pytest.raises(ArtifactError, match="at most 10 are read"):
        tokenizer.load(small_tokenizers.files("words"))


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(MissingExtra, match=r"penstock\[generate\]"):
        tokenizer.load(small_tokenizers.files("words"))
