"""Events of an answer: joined they are its text, whatever the tokens are, and the last one says how it ended."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.generation import tokenizer
from penstock.generation.answer_text import AnswerText
from penstock.generation.detokenizer import decode
from penstock.generation.values import FinishReason, GenerationRequest, SampledToken, TokenEvent, Usage
from tests.penstock.generation import small_tokenizers

LOADED = {kind: tokenizer.load(small_tokenizers.files(kind)) for kind in ("byte level", "sentence piece")}
BYTES = LOADED["byte level"]


def events(
    ids: Sequence[int],
    *,
    finish: FinishReason = "length",
    kind: str = "byte level",
    prompt: tuple[int, ...] = (0,),
    stop: tuple[str, ...] = (),
    stop_ids: tuple[int, ...] = (),
    cached: int = 0,
) -> list[TokenEvent]:
    request = GenerationRequest(id="r", prompt_ids=prompt, max_new_tokens=len(ids), stop=stop, stop_ids=stop_ids)
    answer = AnswerText(request, LOADED[kind].pieces)
    made = []
    for place, token in enumerate(ids, 1):
        last = place == len(ids)
        sampled = SampledToken(
            request="r", token=token, logprob=-float(place), finish=finish if last else None, cached_tokens=cached
        )
        if (event := answer.add(sampled)) is not None:
            made.append(event)
    return made


words = st.lists(
    st.sampled_from(["🙂", "日本", "the ", "end", "e\u0301", "<|im_start|>", "a", "\n"]), min_size=1, max_size=12
)


@pytest.mark.parametrize("kind", LOADED)
@given(
    words.map("".join), st.lists(st.sampled_from(["end", "e", "日本🙂", "\n\n", "zz", "\ufffd"]), max_size=3), st.data()
)
def test_joined_texts_are_the_answer_up_to_its_stop(
    kind: str, text: str, stops: list[str], data: st.DataObject
) -> None:
    ids = LOADED[kind].encode(text)[: data.draw(st.integers(1, 40))]
    made = events(ids, kind=kind, stop=tuple(stops))
    whole = decode(LOADED[kind].pieces, ids)
    shown = "".join(event.text for event in made)
    matched = made[-1].matched_stop
    if matched is None:
        assert shown == whole
        assert not any(stop in whole for stop in stops)
        assert made[-1].finish == "length"
    else:
        assert whole.startswith(f"{shown}{matched}")
        assert made[-1].finish == "stop"
        assert not any(stop in shown for stop in stops)
    assert [event.token for event in made] == ids[: len(made)]
    assert [event.logprob for event in made] == [-float(place) for place in range(1, len(made) + 1)]
    assert [event.finish for event in made[:-1]] == [None] * (len(made) - 1)
    assert [event.usage for event in made[:-1]] == [None] * (len(made) - 1)
    assert made[-1].usage == Usage(prompt_tokens=1, completion_tokens=len(made))


@given(words.map("".join))
def test_bytes_of_the_tokens_joined_are_the_text(text: str) -> None:
    """What OpenAI's log-probabilities tell token by token fits to what was shown."""
    made = events(BYTES.encode(text))
    said = b"".join(BYTES.pieces.bytes_of(event.token) for event in made if event.token not in BYTES.pieces.special)
    assert said.decode() == "".join(event.text for event in made)


def test_the_token_that_ends_an_answer_is_counted_and_has_no_text() -> None:
    word = BYTES.encode("end")
    ended = events([*word, 1], finish="stop")
    assert "".join(event.text for event in ended) == "end"
    assert ended[-1].usage == Usage(prompt_tokens=1, completion_tokens=len(word) + 1)
    assert (ended[-1].finish, ended[-1].matched_stop) == ("stop", None)
    point = BYTES.encode(".")[0]
    asked = events([*word, point], finish="stop", stop_ids=(point,))
    assert "".join(event.text for event in asked) == "end"
    assert asked[-1].matched_stop == point


def test_what_was_held_is_shown_with_the_last_event() -> None:
    smile = BYTES.encode("🙂")
    assert len(smile) > 1 or events(smile)[-1].text == "🙂"
    sentence = LOADED["sentence piece"]
    half = [sentence.token_id("<0xF0>") or 0, sentence.token_id("<0x9F>") or 0]
    assert [event.text for event in events(half, kind="sentence piece")] == ["", "\ufffd"]
    assert [event.text for event in events([*half, 2], kind="sentence piece", finish="stop")] == ["", "", "\ufffd"]
    held = events(BYTES.encode("a<|i"), stop=("<|im",))
    assert "".join(event.text for event in held) == "a<|i"
    assert events(BYTES.encode("a<|i"), stop=("<|im",), finish="cancelled")[-1].finish == "cancelled"


def test_a_stop_string_ends_before_the_engine_does_and_later_tokens_are_nothing() -> None:
    ids = BYTES.encode("one. two. three")
    made = events(ids, stop=(".",))
    assert len(made) < len(ids)
    assert ("".join(event.text for event in made), made[-1].matched_stop) == ("one", ".")


def test_a_stop_string_that_the_last_token_completes_wins_over_the_limit() -> None:
    made = events(BYTES.encode("one."), stop=(".",), finish="length")
    assert (made[-1].finish, made[-1].matched_stop) == ("stop", ".")


def test_cached_tokens_are_some_of_the_prompts() -> None:
    usage = events(BYTES.encode("a"), prompt=(5, 6, 7), cached=9)[-1].usage
    assert usage == Usage(prompt_tokens=3, completion_tokens=1, cached_tokens=3)


def test_the_answer_goes_on_where_the_prompt_ends() -> None:
    sentence = LOADED["sentence piece"]
    hello = [sentence.token_id("▁Hello") or 0]
    the = (sentence.token_id("▁the") or 0,)
    assert events(hello, kind="sentence piece", prompt=the)[0].text == " Hello"
    assert events(hello, kind="sentence piece", prompt=(1,))[0].text == "Hello"  # after <s> alone a text begins
    half = tuple(sentence.token_id(f"<0x{byte:02X}>") or 0 for byte in "🙂".encode())
    assert events(half[2:], kind="sentence piece", prompt=(*the, *half[:2]))[-1].text == "🙂"
