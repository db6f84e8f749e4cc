"""Waiting for a server that was just started, on a clock of the test's own."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from penstock.cli import patience
from penstock.errors import DeadlineExceeded, InvalidInput, Unavailable


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    pauses: list[float] = []
    monkeypatch.setattr(patience.time, "sleep", pauses.append)
    monkeypatch.setattr(patience.time, "monotonic", lambda: sum(pauses))
    return pauses


def answers(*given: str | Exception) -> Callable[[], str]:
    left = list(given)

    def ask() -> str:
        answer = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    return ask


def test_it_asks_until_the_answer_is_enough(slept: list[float]) -> None:
    ask = answers(Unavailable("refused"), "loading", "ready")
    assert patience.patiently(ask, lambda said: said == "ready", waits=True) == "ready"
    assert len(slept) == 2


def test_without_waiting_the_first_answer_counts(slept: list[float]) -> None:
    assert patience.patiently(answers("loading", "ready"), lambda said: said == "ready", waits=False) == "loading"
    with pytest.raises(Unavailable, match="refused"):
        patience.patiently(answers(Unavailable("refused")), lambda said: True, waits=False)
    assert slept == []


@pytest.mark.parametrize(
    ("last", "says"), [("loading", "it answers, and is not ready"), (Unavailable("refused"), "refused")]
)
def test_it_gives_up_and_says_what_there_was(slept: list[float], last: str | Exception, says: str) -> None:
    with pytest.raises(DeadlineExceeded, match=f"not ready within 60 s: {says}"):
        patience.patiently(answers(last), lambda said: said == "ready", waits=True)


def test_another_error_is_not_waited_out(slept: list[float]) -> None:
    with pytest.raises(InvalidInput):
        patience.patiently(answers(InvalidInput("no URL")), lambda said: True, waits=True)
    assert slept == []
