"""Stop strings: the same is shown however a text is cut, nothing leaks, and nothing is held without need."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import InvalidInput
from penstock.generation.stop_strings import MAX_STOP_CHARACTERS, MAX_STOPS, StopStrings, check_stops

letters = st.sampled_from(["a", "b", "é", "🙂", "\u0301", "\n"])
texts = st.lists(letters, max_size=30).map("".join)
some_stops = st.lists(st.lists(letters, min_size=1, max_size=5).map("".join), max_size=4)


def literal(text: str, stops: list[str]) -> tuple[str, str | None]:
    """Return what is shown of a whole text and what ended it, by looking at every beginning of it."""
    for end in range(len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            longest = max(found, key=len)
            return text[: end - len(longest)], longest
    return text, None


def shown(pieces: list[str], stops: list[str]) -> tuple[str, str | None]:
    matcher, text, matched = StopStrings(stops), "", None
    for piece in pieces:
        said = matcher.add(piece)
        text, matched = text + said.text, matched or said.matched
    return text + matcher.end(), matched


def cuts(text: str, places: list[int]) -> list[str]:
    ends = sorted({0, len(text), *(place % (len(text) + 1) for place in places)})
    return [text[start:end] for start, end in itertools.pairwise(ends)]


@given(texts, some_stops, st.lists(st.integers(0, 30), max_size=8))
def test_any_cut_of_a_text_shows_what_the_whole_text_shows(text: str, stops: list[str], places: list[int]) -> None:
    assert shown(cuts(text, places), stops) == literal(text, stops)
    assert shown(list(text), stops) == literal(text, stops)


@given(texts, some_stops)
def test_held_is_the_longest_end_that_may_become_a_stop_and_no_more(text: str, stops: list[str]) -> None:
    matcher, seen, out = StopStrings(stops), "", ""
    for character in text:
        seen += character
        said = matcher.add(character)
        out += said.text
        if said.matched:
            break
        beginnings = [stop[:size] for stop in stops for size in range(1, len(stop))]
        held = max((len(start) for start in beginnings if seen.endswith(start)), default=0)
        assert out == seen[: len(seen) - held]


@pytest.mark.parametrize(
    ("pieces", "stops", "expected"),
    [
        (["Hello<", "|im_", "end|> more"], ["<|im_end|>"], ("Hello", "<|im_end|>")),
        (["ab", "cd"], ["bcd", "c"], ("ab", "c")),  # whole first wins, though another began before
        (["xabc"], ["c", "abc"], ("x", "abc")),  # whole at the same character: the one that began first
        (["aab"], ["ab"], ("a", "ab")),
        (["aaaab"], ["aab"], ("aa", "aab")),
        (["User", ":"], ["User:", "User::"], ("", "User:")),
        (["a<|", "b"], ["<|end|>"], ("a<|b", None)),
        (["e", "\u0301"], ["e"], ("", "e")),  # code points are compared: a combining character is one of its own
        (["\n", "\n", "x"], ["\n\n"], ("", "\n\n")),
        (["abc"], [], ("abc", None)),
        (["", ""], ["a"], ("", None)),
    ],
)
def test_cases(pieces: list[str], stops: list[str], expected: tuple[str, str | None]) -> None:
    assert shown(pieces, stops) == expected


def test_nothing_is_shown_after_a_match() -> None:
    matcher = StopStrings(["."])
    assert matcher.add("a.b").text == "a"
    assert (matcher.add("c").text, matcher.add("d.").matched, matcher.end()) == ("", None, "")


def test_an_answer_that_goes_on_beginning_a_stop_holds_the_stop_only() -> None:
    matcher = StopStrings(["a" * 100 + "b"])
    out = "".join(matcher.add("a").text for _ in range(1000))
    assert len(out) == 900


@pytest.mark.parametrize(
    ("stops", "says"),
    [
        (["a"] * (MAX_STOPS + 1), f"{MAX_STOPS + 1} stop strings; at most {MAX_STOPS}"),
        (["a", ""], "empty"),
        (["a" * (MAX_STOP_CHARACTERS + 1)], f"{MAX_STOP_CHARACTERS + 1} characters; at most {MAX_STOP_CHARACTERS}"),
    ],
)
def test_stops_over_the_limits_are_refused_in_a_sentence(stops: list[str], says: str) -> None:
    with pytest.raises(InvalidInput, match=says) as raised:
        check_stops(stops)
    assert raised.value.field == "stop"
    check_stops(["a" * MAX_STOP_CHARACTERS] * MAX_STOPS)
