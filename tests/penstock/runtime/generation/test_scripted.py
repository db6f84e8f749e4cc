"""What the scripted engine does beyond the contract: it counts, sleeps, fails, hangs and dies where it is told to."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from penstock.errors import Internal
from penstock.generation.values import GenerationRequest, SampledToken
from penstock.runtime.generation import GenerationOptions
from penstock.runtime.generation.scripted import Script, ScriptedEngine

_DIES = """
from penstock.generation.values import GenerationRequest
from penstock.runtime.generation import GenerationOptions
from penstock.runtime.generation.scripted import Script, ScriptedEngine
engine = ScriptedEngine(Script(die_on=9), GenerationOptions())
engine.admit(GenerationRequest(id="a", prompt_ids=(9,), max_new_tokens=3))
engine.step()
"""


def _answered(engine: ScriptedEngine, *prompt: int, new: int = 10) -> list[SampledToken]:
    engine.admit(GenerationRequest(id="a", prompt_ids=prompt, max_new_tokens=new))
    said: list[SampledToken] = []
    while engine.running:
        said += engine.step()
    return said


def test_a_prompt_is_answered_with_itself_and_the_end() -> None:
    answer = _answered(ScriptedEngine(Script(), GenerationOptions()), 5, 6, 7)
    assert [each.token for each in answer] == [5, 6, 7, 1]
    assert answer[-1].finish == "stop"


def test_an_answer_can_be_prescribed() -> None:
    engine = ScriptedEngine(Script(answers={"5 6": (8, 9)}), GenerationOptions())
    assert [each.token for each in _answered(engine, 5, 6)] == [8, 9, 1]


def test_without_an_end_an_answer_goes_on_to_its_limit() -> None:
    answer = _answered(ScriptedEngine(Script(end_id=None), GenerationOptions()), 5, 6, new=5)
    assert [each.token for each in answer] == [5, 6, 5, 6, 5]
    assert answer[-1].finish == "length"


def test_steps_tokens_and_cancellations_are_counted() -> None:
    engine = ScriptedEngine(Script(), GenerationOptions(chunk_tokens=4))
    _answered(engine, *range(2, 12), new=3)
    assert (engine.steps, engine.tokens, engine.cancelled) == (5, 12, 0)
    engine.admit(GenerationRequest(id="b", prompt_ids=(5,), max_new_tokens=3))
    engine.cancel("b")
    engine.step()
    assert (engine.steps, engine.cancelled) == (5, 1)


def test_a_step_that_fails_loses_every_request() -> None:
    engine = ScriptedEngine(Script(fail_on=9), GenerationOptions())
    engine.admit(GenerationRequest(id="b", prompt_ids=(5,), max_new_tokens=3))
    with pytest.raises(Internal, match="script"):
        _answered(engine, 9)
    assert engine.running == 0


def test_a_step_that_hangs_ends_when_another_thread_closes_the_engine() -> None:
    engine = ScriptedEngine(Script(hang_on=9), GenerationOptions())
    engine.admit(GenerationRequest(id="a", prompt_ids=(9,), max_new_tokens=3))
    raised: list[BaseException] = []

    def step() -> None:
        try:
            engine.step()
        except Internal as error:
            raised.append(error)

    thread = threading.Thread(target=step)
    thread.start()
    engine.close()
    thread.join()
    assert len(raised) == 1


def test_a_process_dies_at_its_token() -> None:
    done = subprocess.run([sys.executable, "-c", _DIES], check=False)
    assert done.returncode == 70
