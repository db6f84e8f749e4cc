"""Messages between a worker and its parent: any cut, bounds, and errors that arrive as what they were."""

from __future__ import annotations

import struct
from itertools import pairwise

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import ALL, Internal, InvalidInput, QueueFull, TooLarge
from penstock.generation.values import TokenEvent
from penstock.hosting.generation.frames import (
    Ask,
    Begin,
    Cancel,
    Loaded,
    Report,
    encode,
    from_worker,
    to_worker,
)
from penstock.hosting.generation.generator import Load, Totals
from penstock.hosting.generation.loop import Times
from penstock.hosting.workers.framing import Failure, Splitter, error_of, failure_of
from penstock.runtime.generation import EngineFacts
from tests.penstock.hosting.generation.letters import asked

MANY = 2**20
FACTS = EngineFacts(
    context_tokens=8, vocabulary=9, slots=1, end_ids=frozenset({1}), kv_bytes_per_token=2, grammars=frozenset({"regex"})
)
FROM_WORKER = [
    Loaded(facts=FACTS),
    Report(
        events=(("1", TokenEvent(token=3, text="\U0001f600", logprob=-1.0, finish="stop", matched_stop="x")),),
        failures=(Failure(id="2", code="queue-full", message="full", retry_after_s=1.0),),
        times=Times(queued_s=(0.5,)),
        load=Load(running=1),
        totals=Totals(steps=3),
    ),
    Failure(id="", code="internal", message="it broke"),
]


@given(st.lists(st.integers(0, 60), max_size=6))
def test_messages_arrive_whole_however_they_are_cut(cuts: list[int]) -> None:
    data = b"".join(encode(message, max_bytes=MANY) for message in FROM_WORKER)
    splitter, got = Splitter(MANY), []
    places = [0, *sorted(cut * len(data) // 60 for cut in cuts), len(data)]
    for start, end in pairwise(places):
        got += [from_worker.decode(body) for body in splitter.feed(data[start:end])]
    assert got == FROM_WORKER


def test_what_the_parent_says_arrives_too() -> None:
    messages = [Ask(request=asked(stop=("a",)), left_s=2.5, priority=1), Cancel(id="7")]
    bodies = Splitter(MANY).feed(b"".join(encode(message, max_bytes=MANY) for message in messages))
    assert [to_worker.decode(body) for body in bodies] == messages


def test_a_message_over_the_limit_is_refused_on_both_sides() -> None:
    message = Ask(request=asked("x" * 1000))
    with pytest.raises(TooLarge):
        encode(message, max_bytes=500)
    with pytest.raises(TooLarge):
        list(Splitter(500).feed(encode(message, max_bytes=MANY)))
    with pytest.raises(TooLarge):
        list(Splitter(500).feed(struct.pack("<I", 2**31)))  # refused by its length, before its bytes are there


@pytest.mark.parametrize("code", sorted(ALL))
def test_every_error_can_travel(code: str) -> None:
    assert error_of(Failure(id="1", code=code, message="what was wrong")).message == "what was wrong"


def test_an_error_arrives_as_what_it_was() -> None:
    for error in (InvalidInput("no", field="prompt"), QueueFull("full", retry_after_s=3.0), Internal("broken")):
        again = error_of(failure_of("1", error))
        assert (type(again), vars(again)) == (type(error), vars(error))
    assert type(error_of(failure_of("1", OSError("disk")))) is Internal
    assert type(error_of(Failure(id="1", code="of-tomorrow", message="?"))) is Internal


def test_nothing_else_is_understood() -> None:
    with pytest.raises(msgspec.ValidationError):
        from_worker.decode(msgspec.msgpack.encode({"type": "begin"}))
    with pytest.raises(msgspec.ValidationError):
        to_worker.decode(msgspec.msgpack.encode({"type": "loaded"}))
    assert Begin.__struct_config__.tag == "begin"
