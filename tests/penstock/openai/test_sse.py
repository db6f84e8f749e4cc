"""Server-sent events: whatever pieces the bytes come in, the events are the same; an answer is whole or an error."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.errors import Internal, InvalidInput, PenstockError, QueueFull, QuotaExceeded, Unavailable
from penstock.openai.error_objects import error_document, error_from_document
from penstock.openai.sse import DONE, END, MAX_EVENT_BYTES, Event, SseDecoder, event_bytes
from penstock.openai.streams import ChunkReader


def decoded(data: bytes, *cuts: int, max_event_bytes: int = MAX_EVENT_BYTES) -> list[Event]:
    decoder = SseDecoder(max_event_bytes=max_event_bytes)
    places = [0, *sorted(cuts), len(data)]
    return [event for start, stop in pairwise(places) for event in decoder.feed(data[start:stop])]


@pytest.mark.parametrize(
    ("data", "events"),
    [
        (b"data: a\n\n", [Event(data="a")]),
        (b"data:a\r\n\r\n", [Event(data="a")]),
        (b"data: a\r\r", [Event(data="a")]),
        (b"data:  a\n\n", [Event(data=" a")]),
        (b"data: a\ndata: b\n\n", [Event(data="a\nb")]),
        (b"data\n\n", [Event(data="")]),
        (b": keep-alive\n\ndata: a\n\n", [Event(data="a")]),
        (b"event: error\ndata: {}\n\ndata: b\n\n", [Event(data="{}", kind="error"), Event(data="b")]),
        (b"event: error\n\ndata: b\n\n", [Event(data="b")]),
        (b"id: 4\nretry: 5\nnonsense\ndata: a\n\n", [Event(data="a")]),
        (b"\xef\xbb\xbfdata: a\n\n", [Event(data="a")]),
        (b"data: a\n\n\n\n\n", [Event(data="a")]),
        (b"data: a\n", []),
        (b"data: a\n\ndata: b", [Event(data="a")]),
        ("data: é\u2028\x85\n\n".encode(), [Event(data="é\u2028\x85")]),
        (DONE, [Event(data=END)]),
    ],
)
def test_events_are_read_as_the_standard_says(data: bytes, events: list[Event]) -> None:
    assert decoded(data) == events
    assert decoded(data, *range(len(data))) == events


LINE_ENDS = st.sampled_from([b"\n", b"\r\n", b"\r"])
LINES = st.sampled_from(
    [b"data: a", b"data:", b"data: \xc3\xa9", b": x", b"event: e", b"", b"\xef\xbb\xbfdata: b", b"id: 1"]
)


@settings(max_examples=60)
@given(lines=st.lists(st.tuples(LINES, LINE_ENDS), max_size=12), data=st.data())
def test_any_cut_of_the_bytes_gives_the_same_events(lines: list[tuple[bytes, bytes]], data: st.DataObject) -> None:
    stream = b"".join(line + end for line, end in lines)
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=8))
    assert decoded(stream, *cuts) == decoded(stream)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=40)
@given(documents=st.lists(st.dictionaries(st.text(max_size=5), JSON, max_size=4), max_size=4), data=st.data())
def test_what_was_written_is_read_back(documents: list[dict[str, Any]], data: st.DataObject) -> None:
    stream = b"".join(event_bytes(document) for document in documents) + DONE
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=8))
    *events, end = decoded(stream, *cuts)
    assert [msgspec.json.decode(event.data) for event in events] == documents
    assert end.data == END


@pytest.mark.parametrize("data", [b"data: " + b"x" * 99, b"x" * 99, b"data: 456789\n" * 20, b":" + b"x" * 99 + b"\n"])
@pytest.mark.parametrize("piece_bytes", [1, 1000])
def test_an_event_without_end_is_refused_however_it_comes(data: bytes, piece_bytes: int) -> None:
    with pytest.raises(Internal, match="more than 64 bytes"):
        decoded(data, *range(0, len(data), piece_bytes), max_event_bytes=64)


def test_small_events_never_reach_the_limit_together() -> None:
    decoder = SseDecoder(max_event_bytes=64)
    assert len(decoder.feed(b"data: 0123456789\n\n" * 100)) == 100


def test_bytes_that_are_no_text_are_refused() -> None:
    with pytest.raises(Internal, match="not UTF-8"):
        decoded(b"data: \xff\n\n")


def chunk(*reasons: str | None) -> Event:
    choices = [{"index": index, "delta": {}, "finish_reason": reason} for index, reason in enumerate(reasons)]
    return Event(data=msgspec.json.encode({"choices": choices}).decode())


@pytest.mark.parametrize("reason", ["stop", "length", "tool_calls"])
def test_an_answer_is_whole_once_its_reason_was_told(reason: str) -> None:
    reader = ChunkReader()
    assert reader.read(chunk(None)) is not None
    assert not reader.is_whole
    reader.read(chunk(reason))
    reader.read(Event(data='{"choices": [], "usage": {}}'))
    assert reader.read(Event(data=END)) is None
    reader.end()


def test_the_end_of_the_stream_alone_proves_nothing() -> None:
    reader = ChunkReader()
    reader.read(chunk(None))
    assert reader.read(Event(data=END)) is None
    with pytest.raises(Unavailable, match="ended before"):
        reader.end()


def test_every_choice_has_to_be_finished() -> None:
    reader = ChunkReader(choices=2)
    reader.read(chunk("stop"))
    with pytest.raises(Unavailable, match="ended before"):
        reader.end()
    reader.read(chunk(None, "length"))
    reader.end()


@pytest.mark.parametrize("reason", ["abort", "error", "content_filter", 3])
def test_an_answer_that_was_given_up_is_an_error(reason: Any) -> None:
    with pytest.raises(Unavailable, match="gave the answer up"):
        ChunkReader().read(chunk(reason))


@pytest.mark.parametrize("data", ["", "nonsense", "[]", "3", "{}", '{"choices": 3}', '{"choices": [3]}', "[" * 10_000])
def test_what_is_no_chunk_is_an_error(data: str) -> None:
    with pytest.raises(Internal):
        ChunkReader().read(Event(data=data))


@pytest.mark.parametrize(
    "error",
    [
        InvalidInput("n: wrong", field="n"),
        QueueFull("full"),
        Unavailable("gone"),
        Internal("broke"),
    ],
)
def test_an_error_of_ours_comes_back_as_itself(error: PenstockError) -> None:
    document = error_document(error)
    assert set(document["error"]) == {"message", "type", "param", "code"}
    with pytest.raises(type(error)) as read:
        ChunkReader().read(decoded(event_bytes(document))[0])
    assert read.value.message == error.message
    assert vars(read.value) == vars(error)


@pytest.mark.parametrize(
    ("document", "kind"),
    [
        ({"error": {"message": "x", "type": "BadRequestError", "code": 400}}, InvalidInput),
        ({"error": {"message": "x", "type": "invalid_request_error", "code": None}}, InvalidInput),
        ({"error": {"message": "x", "code": 429}}, QuotaExceeded),
        ({"error": {"message": "x", "code": "quota-exceeded"}}, QuotaExceeded),
        ({"error": {"message": "x", "type": "Internal Server Error", "code": 500}}, Internal),
        ({"error": {"message": None}}, Internal),
        ({"error": "broke"}, Internal),
    ],
)
def test_errors_of_other_servers_are_the_nearest_of_ours(document: Any, kind: type[PenstockError]) -> None:
    assert type(error_from_document(document)) is kind


@pytest.mark.parametrize("document", [{}, {"error": None}, [], None, "error"])
def test_what_holds_no_error_is_none(document: Any) -> None:
    assert error_from_document(document) is None
