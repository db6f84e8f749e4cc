"""The loop of one engine, step by step on a virtual clock: order, deadlines, cancellation, stop strings, counts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest

from penstock.errors import DeadlineExceeded, Internal, InvalidInput, PenstockError, QueueFull
from penstock.generation import tokenizer
from penstock.generation.answer_text import AnswerText
from penstock.generation.values import GenerationRequest, GiveUp, SampledToken, TokenEvent
from penstock.hosting.generation.generator import Load, Totals
from penstock.hosting.generation.loop import EngineLoop, Turn
from penstock.hosting.generation.settings import LineSettings
from penstock.runtime.generation import GenerationOptions
from penstock.runtime.generation.scripted import Script, ScriptedEngine
from tests.penstock.hosting.generation.letters import asked, letters, tokenizer_json

TOKEN_S = 0.01
PIECES = tokenizer.load({tokenizer.FILE: tokenizer_json()}).pieces


class TimedEngine(ScriptedEngine):
    """Each token that it computes moves the rig's clock."""

    now = 1000.0

    def step(self) -> Sequence[SampledToken]:
        before = self.tokens
        sampled = super().step()
        self.now += TOKEN_S * (self.tokens - before)
        return sampled


class Rig:
    def __init__(self, *, slots: int = 2, line: LineSettings = LineSettings(), **script: Any) -> None:  # noqa: B008
        self.engine = TimedEngine(Script(**script), GenerationOptions(slots=slots, chunk_tokens=16))
        self.loop = EngineLoop(self.engine, letters, line.of(self.engine.facts), lambda: self.engine.now)
        self.turns: list[Turn] = []

    def turn(self) -> Turn:
        self.turns.append(self.loop.turn())
        return self.turns[-1]

    def until_idle(self) -> None:
        for _ in range(10_000):
            if not self.turn().has_work:
                return
        raise AssertionError("never idle")

    def text(self, id: str = "a") -> str:
        return "".join(event.text for turn in self.turns for of, event in turn.events if of == id)

    def finish(self, id: str = "a") -> str | None:
        return next(
            (event.finish for turn in self.turns for of, event in turn.events if of == id and event.finish), None
        )

    def errors(self) -> dict[str, PenstockError]:
        return {id: error for turn in self.turns for id, error in turn.failures}

    def order(self) -> list[str]:
        """Ids in the order of their first events."""
        return list(dict.fromkeys(id for turn in self.turns for id, _ in turn.events))


def test_an_answer_of_no_use_ends_in_the_step_that_shows_it() -> None:
    """The scripted engine finds each of its tokens half likely."""
    rig = Rig()
    rig.loop.submit(asked("hello", new=7, id="a", give_up=GiveUp(below=0.5)))  # a tie is kept
    rig.loop.submit(asked("world", new=7, id="b", give_up=GiveUp(below=0.6, first_only=True)))
    rig.until_idle()
    assert (rig.finish("a"), rig.text("a")) == ("length", "hellohe")
    assert (rig.finish("b"), rig.text("b")) == ("cancelled", "w")
    assert rig.engine.cancelled == 1
    assert rig.engine.tokens == 5 + 7 - 1 + 5  # no step was made for b after its prompt
    totals = rig.loop.totals()
    assert (totals.completion_tokens, totals.ended, totals.cut_off) == (8, 1, 1)


def test_an_answer_that_ends_where_it_would_be_given_up_is_whole() -> None:
    rig = Rig()
    rig.loop.submit(asked("hello", new=1, give_up=GiveUp(below=0.6)))
    rig.until_idle()
    assert rig.finish() == "length"


@pytest.mark.parametrize(
    ("wish", "logprob", "place", "applies"),
    [
        (GiveUp(below=0.5), math.log(0.4), 3, True),
        (GiveUp(below=0.5), math.log(0.6), 3, False),
        (GiveUp(below=0.5), math.nan, 0, True),
        (GiveUp(below=0.5, first_only=True), math.log(0.4), 0, True),
        (GiveUp(below=0.5, first_only=True), math.log(0.4), 1, False),
    ],
)
def test_a_wish_to_give_up_says_for_which_tokens(wish: GiveUp, logprob: float, place: int, applies: bool) -> None:
    assert wish.applies(logprob, place=place) is applies


def test_an_answer_comes_token_by_token_with_its_text_and_its_usage() -> None:
    rig = Rig()
    rig.loop.submit(asked("hello", new=7))
    rig.until_idle()
    assert rig.text() == "hellohe"
    assert rig.finish() == "length"
    last = rig.turns[-1].events[-1][1]
    assert last.usage is not None
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (5, 7)
    assert rig.loop.load() == Load(max_kv_bytes=2 * 512 * 1024)


def test_a_turn_with_nothing_to_do_is_harmless() -> None:
    rig = Rig()
    assert rig.turn() == rig.turn()
    assert not rig.turn().has_work
    assert rig.engine.steps == 0


def test_a_stop_string_ends_the_answer_and_frees_the_engine() -> None:
    rig = Rig()
    rig.loop.submit(asked("hello", new=100, stop=("oh",)))
    rig.until_idle()
    assert rig.text() == "hell"
    assert rig.finish() == "stop"
    assert rig.engine.running == 0
    assert rig.engine.cancelled == 1
    assert rig.engine.tokens < 15, "nothing was computed after the stop string"


@pytest.mark.parametrize("steps", range(6))
def test_a_cancelled_generation_makes_no_further_step(steps: int) -> None:
    rig = Rig()
    rig.loop.submit(asked("a" * 40, new=100))
    for _ in range(steps):
        rig.turn()
    assert rig.loop.cancel("a")
    made = rig.engine.steps
    assert not rig.turn().events
    assert not rig.turn().has_work
    assert rig.engine.steps == made == steps
    assert rig.loop.totals().cut_off == 1
    assert not rig.loop.cancel("a")


def test_who_waits_is_cancelled_without_touching_the_engine() -> None:
    rig = Rig(slots=1)
    rig.loop.submit(asked(id="a", new=3))
    rig.turn()
    rig.loop.submit(asked(id="b"))
    assert rig.loop.cancel("b")
    rig.until_idle()
    assert rig.order() == ["a"]
    assert rig.engine.cancelled == 0


def test_what_expires_in_the_line_never_runs() -> None:
    rig = Rig(slots=1)
    rig.loop.submit(asked(id="a", new=50))
    rig.loop.submit(asked(id="b"), deadline=rig.engine.now + 0.2)
    rig.until_idle()
    assert isinstance(rig.errors()["b"], DeadlineExceeded)
    assert "before the first token" in rig.errors()["b"].message
    assert rig.order() == ["a"]
    assert rig.loop.totals().prompt_tokens == 5


def test_what_runs_is_cut_at_its_deadline_and_says_how_far_it_came() -> None:
    rig = Rig()
    rig.loop.submit(asked("hello", new=100), deadline=rig.engine.now + 0.205)
    rig.until_idle()
    assert "after 17 tokens" in rig.errors()["a"].message
    assert rig.engine.running == 0
    assert rig.finish() is None


def test_what_comes_too_late_is_refused() -> None:
    rig = Rig()
    with pytest.raises(DeadlineExceeded):
        rig.loop.submit(asked(), deadline=rig.engine.now)
    assert rig.loop.load().waiting == 0


def test_the_line_goes_by_priority_and_then_by_arrival() -> None:
    rig = Rig(slots=1)
    rig.loop.submit(asked(id="first", new=1))
    rig.turn()
    for id, priority in (("b", 0), ("c", 0), ("urgent", 1), ("later", 3)):
        rig.loop.submit(asked(id=id, new=1), priority=priority)
    rig.until_idle()
    assert rig.order() == ["first", "urgent", "b", "c", "later"]


def test_short_prompts_are_answered_while_long_ones_are_computed() -> None:
    """One prompt of 1,500 tokens, and several behind it: the first token of a short one is a matter of a chunk."""
    rig = Rig(slots=3, context_tokens=2048)
    for number in range(4):
        rig.loop.submit(asked("x" * 1500, id=f"long{number}", new=4))
    rig.turn()
    rig.loop.submit(asked("hi", id="short", new=1))
    arrived = rig.engine.now
    while rig.finish("short") is None:
        rig.turn()
    assert rig.engine.now - arrived <= 3 * 17 * TOKEN_S
    rig.until_idle()
    assert {f"long{number}" for number in range(4)} <= set(rig.order())


def test_a_long_prompt_is_not_starved_by_short_ones_that_keep_coming() -> None:
    line = LineSettings(max_kv_bytes=120 * 1024, overtaken_s=1.0)
    rig = Rig(slots=4, line=line)
    rig.loop.submit(asked("ab", id="s0", new=30))
    rig.turn()
    rig.loop.submit(asked("x" * 100, id="long", new=10))
    for number in range(1, 400):
        if rig.loop.load().waiting < 4:
            rig.loop.submit(asked("ab", id=f"s{number}", new=30))
        rig.turn()
        if rig.finish("long"):
            break
    assert rig.finish("long") == "length"
    assert rig.engine.now - 1000.0 < 10


def test_the_memory_of_keys_and_values_is_what_admission_counts() -> None:
    rig = Rig(slots=8, line=LineSettings(max_kv_bytes=40 * 1024))
    for id in "abc":
        rig.loop.submit(asked("hello", id=id, new=10))  # 15 tokens of 1,024 bytes
    rig.turn()
    assert rig.loop.load() == Load(
        waiting=1, waiting_kv_bytes=15 * 1024, running=2, running_kv_bytes=30 * 1024, max_kv_bytes=40 * 1024
    )
    rig.until_idle()
    assert sorted(rig.order()) == ["a", "b", "c"]


def test_what_can_never_fit_is_refused_at_once_with_both_numbers() -> None:
    rig = Rig(line=LineSettings(max_kv_bytes=10 * 1024))
    with pytest.raises(InvalidInput, match=r"15360 .* 10240"):
        rig.loop.submit(asked("hello", new=10))
    with pytest.raises(InvalidInput, match=r"600.*512"):
        rig.loop.submit(asked("hello", new=595))


def test_the_line_is_bounded() -> None:
    rig = Rig(slots=1, line=LineSettings(max_waiting=2))
    for id in "abc":
        rig.loop.submit(asked(id=id))
    with pytest.raises(QueueFull) as caught:
        rig.loop.submit(asked(id="d"))
    assert caught.value.retry_after_s == 1.0
    rig.until_idle()
    assert rig.order() == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"prompt_ids": ()}, "prompt_ids"),
        ({"prompt_ids": (5, 5000)}, "prompt_ids[1]"),
        ({"prompt_ids": (-1,)}, "prompt_ids[0]"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"top_logprobs": 99}, "top_logprobs"),
    ],
)
def test_a_wrong_request_is_refused_before_it_waits(wrong: dict[str, Any], field: str) -> None:
    rig = Rig()
    request = GenerationRequest(**{"id": "a", "prompt_ids": (1,), "max_new_tokens": 1, **wrong})
    with pytest.raises(InvalidInput) as caught:
        rig.loop.submit(request)
    assert caught.value.field == field
    assert rig.loop.load().waiting == 0


def test_an_id_runs_once() -> None:
    rig = Rig()
    rig.loop.submit(asked())
    with pytest.raises(InvalidInput, match="runs already"):
        rig.loop.submit(asked())


def test_text_that_cannot_be_made_ends_one_answer_and_not_the_others() -> None:
    class Broken(AnswerText):
        def add(self, sampled: SampledToken) -> TokenEvent | None:
            raise ZeroDivisionError("no such letter")

    rig = Rig()
    rig.loop = EngineLoop(
        rig.engine,
        lambda request: Broken(request, PIECES) if request.id == "bad" else letters(request),
        LineSettings().of(rig.engine.facts),
        lambda: 0.0,
    )
    rig.loop.submit(asked("h", id="bad"))
    rig.loop.submit(asked("hello", id="good"))
    rig.until_idle()
    assert isinstance(rig.errors()["bad"], Internal)
    assert rig.text("good") == "hellohel"
    assert rig.engine.running == 0


def test_what_an_engine_cannot_take_ends_one_generation_and_not_the_others() -> None:
    class Picky(TimedEngine):
        def admit(self, request: GenerationRequest) -> None:
            super().admit(request)
            if request.id == "bad":
                raise RuntimeError("this grammar cannot be compiled")

    rig = Rig()
    rig.engine = Picky(Script(), GenerationOptions(slots=2))
    rig.loop = EngineLoop(rig.engine, letters, LineSettings().of(rig.engine.facts), lambda: 0.0)
    for id in ("bad", "good"):
        rig.loop.submit(asked(id=id))
    rig.until_idle()
    assert "cannot be compiled" in rig.errors()["bad"].message
    assert rig.text("good") == "hellohel"
    assert rig.engine.running == 0


def test_an_engine_that_fails_is_told() -> None:
    rig = Rig(fail_on=ord("!"))
    rig.loop.submit(asked("oh!"))
    with pytest.raises(Internal):
        rig.turn()


def test_an_engine_that_steps_without_end_is_found() -> None:
    class Lost(TimedEngine):
        def step(self) -> Sequence[SampledToken]:
            return ()

    rig = Rig()
    engine = Lost(Script(), GenerationOptions())
    loop = EngineLoop(engine, letters, LineSettings().of(engine.facts), lambda: 0.0)
    loop.submit(asked("hello"))
    for _ in range(64 + 5):
        loop.turn()
    with pytest.raises(Internal, match="without a token"):
        loop.turn()
    rig.loop.submit(asked("x" * 500, new=1))  # 32 chunks without a token are a long prompt
    rig.until_idle()
    assert rig.finish() == "length"


def test_times_and_totals_are_counted() -> None:
    rig = Rig(slots=1)
    rig.loop.submit(asked("hello", id="a", new=3))
    rig.loop.submit(asked("hello", id="b", new=1))
    rig.until_idle()
    times = [turn.times for turn in rig.turns]
    queued_s = [seconds for each in times for seconds in each.queued_s]
    first_s = [seconds for each in times for seconds in each.first_token_s]
    between_s = [seconds for each in times for seconds in each.between_tokens_s]
    assert queued_s == pytest.approx([0.0, 0.07])  # five tokens of the prompt give the first, two steps the others
    assert first_s == pytest.approx([0.05, 0.12])
    assert between_s == pytest.approx([0.01, 0.01])
    assert rig.loop.totals() == Totals(steps=4, prompt_tokens=10, completion_tokens=4, ended=2)


def test_the_engine_is_closed_with_its_loop() -> None:
    rig = Rig()
    rig.loop.close()
    with pytest.raises(Internal):
        rig.engine.step()


def test_a_generation_without_a_deadline_ends_by_itself() -> None:
    rig = Rig()
    rig.loop.submit(asked(new=400), deadline=math.inf)
    rig.until_idle()
    assert rig.finish() == "length"
