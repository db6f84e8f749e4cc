"""Options as tokens: exactly their text behind a prompt, for every kind of tokenizer, and what ends them."""

from __future__ import annotations

import pytest

from penstock.errors import InvalidInput
from penstock.generation import choices, tokenizer
from penstock.generation.choices import MAX_OPTIONS, options_of
from penstock.generation.detokenizer import Detokenizer
from penstock.generation.values import Grammar
from tests.penstock.generation.small_tokenizers import MAKERS, files

TEXTS = ("the", "Hello, world!", " the", "日本", "a\nb", "🙂")


@pytest.mark.parametrize("kind", MAKERS)
def test_an_options_tokens_are_its_text_behind_a_prompt_or_it_is_refused(kind: str) -> None:
    reads = tokenizer.load(files(kind))
    prompt = reads.encode("Hello", add_special_tokens=False)
    said = 0
    for text in TEXTS:
        try:
            (ids,) = options_of([text], reads, end_ids={1}).ids
        except InvalidInput:
            continue
        stream = Detokenizer(reads.pieces, after=prompt)
        assert "".join([*(stream.add(token) for token in ids), stream.end()]) == text
        said += 1
    assert (said > 0) is (kind != "words")  # which puts a space before each of its words, and knows few


def test_every_text_can_be_said_in_bytes() -> None:
    reads = tokenizer.load(files("byte level"))
    assert len(options_of(TEXTS, reads, end_ids={1}).ids) == len(TEXTS)


def test_an_option_ends_with_the_models_end_or_with_what_begins_with_a_stop() -> None:
    reads = tokenizer.load(files("byte level"))
    vocabulary = range(reads.facts.vocabulary)
    found = options_of(["yes", "no"], reads, stop=["t", "\n"], end_ids={3}).end_ids
    expected = {at for at in vocabulary if reads.pieces.text_bytes(at, first=False)[:1] in (b"t", b"\n")}
    assert len(expected) > 2  # "the" is a token, too
    assert set(found) == expected | {3}
    assert options_of(["yes"], reads, end_ids={3}).end_ids == (3,)
    assert options_of(["yes"], reads, stop=["\n", "t"], end_ids={3}).end_ids == found  # in whatever order


@pytest.mark.parametrize(
    ("texts", "stop", "ends", "said"),
    [
        (["yes", "no", "yes"], [], {3}, "'yes' is there twice"),
        ([str(at) for at in range(1000)], [], {3}, f"1000 options; at most {MAX_OPTIONS} are scored"),
        (["one\ntwo"], ["\n"], {3}, r"'one\\ntwo' holds '\\n', at which answers stop"),
        (["yes"], [], set(), "no token that ends an answer"),
        (["<s>"], [], {3}, "no tokens of this model stand for '<s>' behind a prompt"),
    ],
)
def test_what_cannot_be_scored_is_refused_in_words(
    texts: list[str], stop: list[str], ends: set[int], said: str
) -> None:
    with pytest.raises(InvalidInput, match=said):
        options_of(texts, tokenizer.load(files("byte level")), stop=stop, end_ids=ends)


@pytest.mark.parametrize("text", ["", "[]", "{}", "[1]", '["a",""]', '"a"', "[null]", "\ud800"])
def test_a_grammar_that_holds_no_options_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="choices are a"):
        choices.texts_of(Grammar(kind="choice", text=text))


def test_options_go_into_a_grammar_and_out_again() -> None:
    texts = ("yes", 'say "no"', "日本\n")
    assert choices.texts_of(choices.grammar_of(texts)) == texts
