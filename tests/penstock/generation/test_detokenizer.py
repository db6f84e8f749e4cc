"""Text of tokens as they come: what tokenizers decodes at once, for any tokens and cut anywhere."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.generation import tokenizer
from penstock.generation.detokenizer import Detokenizer, decode
from tests.penstock.generation import small_tokenizers

KINDS = list(small_tokenizers.MAKERS)
LOADED = {kind: tokenizer.load(small_tokenizers.files(kind)) for kind in KINDS}
words = st.lists(
    st.sampled_from(
        [
            "👩‍👩‍👧‍👦",
            "🙂",
            "日本語",
            "e\u0301",
            "ñ",
            "अ",
            " the",
            "Hello",
            "  ",
            "\n",
            "<|im_start|>",
            "<tool call>",
            "한국어",
        ]
    )
    | st.text(max_size=4),
    max_size=8,
).map("".join)


def streamed(kind: str, ids: list[int], prompt: list[int] | None = None) -> list[str]:
    stream = Detokenizer(LOADED[kind].pieces, after=prompt or [])
    return [*(stream.add(token) for token in ids), stream.end()]


@pytest.mark.parametrize("kind", KINDS)
@given(words)
def test_the_texts_of_a_stream_are_the_text_of_all_tokens(kind: str, text: str) -> None:
    ids = LOADED[kind].encode(text)
    assert "".join(streamed(kind, ids)) == small_tokenizers.library(kind).decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "sentence piece"])
@given(st.data())
def test_any_tokens_at_all_give_the_librarys_text(kind: str, data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.integers(0, LOADED[kind].facts.vocabulary + 3), max_size=30))
    assert "".join(streamed(kind, ids)) == small_tokenizers.library(kind).decode(ids, skip_special_tokens=True)


def said_by_library(ids: list[int]) -> str:
    """Return the library's text with a run of byte tokens that is not whole replaced as Unicode recommends."""
    oracle = small_tokenizers.library("sentence piece")
    special = {oracle.token_to_id(name) for name in ["<unk>", *small_tokenizers.SPECIAL]}
    names = [oracle.id_to_token(token) for token in ids if token not in special]
    text, run = "", b""
    for name in [*names, ""]:
        if found := re.fullmatch("<0x(..)>", name or ""):
            run += bytes.fromhex(found[1])
        else:
            text, run = text + run.decode(errors="replace") + (name or "").replace("▁", " "), b""
    return text.removeprefix(" ")


@given(st.lists(st.integers(0, LOADED["sentence piece"].facts.vocabulary - 1), max_size=30))
def test_byte_tokens_that_are_no_characters_cost_no_character_beside_them(ids: list[int]) -> None:
    text = "".join(streamed("sentence piece", ids))
    assert text == said_by_library(ids)
    if "\ufffd" not in text:
        assert text == small_tokenizers.library("sentence piece").decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=50)
@given(st.data())
def test_a_prompt_cut_anywhere_and_its_answer_are_one_text(kind: str, data: st.DataObject) -> None:
    """Also in the middle of a character, which then belongs to the answer."""
    ids = LOADED[kind].encode(data.draw(words))
    cut = data.draw(st.integers(0, len(ids)))
    if not any(LOADED[kind].pieces.has_text(token) for token in ids[cut:]):
        return  # half a character of the prompt alone is nothing, as a test below says
    stream = Detokenizer(LOADED[kind].pieces)
    before = "".join(stream.add(token) for token in ids[:cut])
    whole = small_tokenizers.library(kind).decode(ids, skip_special_tokens=True)
    assert before + "".join(streamed(kind, ids[cut:], prompt=ids[:cut])) == whole


@given(words)
def test_nothing_is_held_but_a_character_that_is_not_whole(text: str) -> None:
    ids = LOADED["byte level"].encode(text)
    seen, stream = b"", Detokenizer(LOADED["byte level"].pieces)
    shown = ""
    for token in ids:
        seen += LOADED["byte level"].pieces.text_bytes(token, first=False)
        shown += stream.add(token)
        assert shown == seen.decode(errors="ignore")
        assert len(seen) - len(shown.encode()) <= 3


def test_a_character_that_never_ends_is_one_replacement_at_the_end() -> None:
    emoji = [LOADED["sentence piece"].token_id(f"<0x{byte:02X}>") for byte in "🙂".encode()]
    assert streamed("sentence piece", [*emoji[:3]]) == ["", "", "", "\ufffd"]
    assert streamed("sentence piece", emoji) == ["", "", "", "🙂", ""]


def test_half_a_character_of_the_prompt_alone_is_nothing() -> None:
    emoji = [LOADED["sentence piece"].token_id(f"<0x{byte:02X}>") for byte in "🙂".encode()]
    assert streamed("sentence piece", [], prompt=emoji[:2]) == [""]
    assert streamed("sentence piece", [2], prompt=emoji[:2]) == ["", ""]
    assert "".join(streamed("sentence piece", emoji[2:], prompt=emoji[:2])) == "🙂"


def test_a_long_prompt_costs_a_look_at_its_end() -> None:
    class Counting:
        def __init__(self) -> None:
            self.asked = 0
            self.inner = LOADED["byte level"].pieces
            self.special, self.stripped, self.has_text = self.inner.special, self.inner.stripped, self.inner.has_text

        def text_bytes(self, token: int, *, first: bool) -> bytes:
            self.asked += 1
            return self.inner.text_bytes(token, first=first)

    pieces, prompt = Counting(), LOADED["byte level"].encode("hello " * 2000)
    stream = Detokenizer(pieces, after=prompt)  # type: ignore[arg-type]
    assert pieces.asked < 40
    before = pieces.asked
    for token in prompt:
        stream.add(token)
    assert pieces.asked - before == len(prompt)


@settings(max_examples=30)
@given(words)
def test_decoding_at_once_is_the_stream(text: str) -> None:
    for kind in KINDS:
        ids = LOADED[kind].encode(text)
        assert decode(LOADED[kind].pieces, ids) == "".join(streamed(kind, ids))
