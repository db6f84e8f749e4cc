"""Two agents under one name are told from one that was started again."""

from __future__ import annotations

from dataclasses import replace

import hypothesis.strategies as st
from hypothesis import given

from cloud_core.policy.rollouts.instances import Voice, agents_by_instance, heard, live, must_renew, to_forget

WINDOW_S = 100.0
MOST = 4


def after(*reports: str, step_s: float = 5.0, voices: tuple[Voice, ...] = (), start: float = 0.0) -> tuple[Voice, ...]:
    """Reports named ``RUN`` or ``RUN:INSTANCE``, one every ``step_s``."""
    for number, report in enumerate(reports):
        run, _, instance = report.partition(":")
        at = start + number * step_s
        voices = heard(voices, run=run, instance=instance or "A", at=at, window_s=WINDOW_S, most=MOST)
    return voices


def alive(voices: tuple[Voice, ...], at: float | None = None) -> list[str]:
    now = voices[-1].last_at if at is None else at
    return sorted(voice.run for voice in live(voices, at=now, window_s=WINDOW_S))


def test_one_agent_is_one() -> None:
    assert alive(after("r1", "r1", "r1")) == ["r1"]


def test_a_restart_is_one_agent() -> None:
    assert alive(after("r1", "r1", "r2")) == ["r2"]
    assert alive(after("r1", "r1", "r2", "r2", "r3", "r3")) == ["r3"]


def test_a_report_of_a_killed_process_that_arrives_late_is_no_second_agent() -> None:
    assert alive(after("r1", "r2", "r1", "r2", "r2", "r2")) == ["r2"]


def test_two_that_alternate_are_two() -> None:
    assert alive(after("r1", "r2", "r1", "r2", "r1")) == ["r1", "r2"]
    assert alive(after("r1:A", "r2:B", "r1:A", "r2:B", "r1:A")) == ["r1", "r2"]


def test_one_that_reports_ten_times_as_often_hides_nothing() -> None:
    seldom = [*["r1"] * 10, "r2"] * 3
    assert alive(after(*seldom, "r1", step_s=1.0)) == ["r1", "r2"]


def test_it_is_over_when_one_of_two_was_silent_for_the_window() -> None:
    two = after("r1", "r2", "r1", "r2", "r1")
    at = two[-1].last_at
    assert alive(two, at + WINDOW_S - 5) == ["r1", "r2"]
    assert alive(two, at + WINDOW_S) == ["r1"]
    left = after("r1", voices=two, start=at + WINDOW_S)
    assert alive(left) == ["r1"]
    assert left[0].returns == 0


def test_older_agents_name_no_run_and_are_one_voice() -> None:
    voices = heard((), run="", instance="", at=0.0, window_s=WINDOW_S, most=MOST)
    voices = heard(voices, run="", instance="", at=1.0, window_s=WINDOW_S, most=MOST)
    assert alive(voices) == [""]
    assert not must_renew(live(voices, at=1.0, window_s=WINDOW_S), "")


def test_an_older_agent_beside_a_newer_one_is_seen() -> None:
    assert alive(after(":", "r1", ":", "r1", ":")) == ["", "r1"]


def test_of_two_with_one_instance_the_later_one_takes_another() -> None:
    agents = live(after("r1", "r2", "r1", "r2", "r1"), at=20.0, window_s=WINDOW_S)
    assert [must_renew(agents, run) for run in ("r1", "r2", "r3")] == [False, True, False]
    assert agents_by_instance(agents) == {"A": 2}


def test_two_with_instances_of_their_own_keep_them() -> None:
    agents = live(after("r1:A", "r2:B", "r1:A", "r2:B", "r1:A"), at=20.0, window_s=WINDOW_S)
    assert not any(must_renew(agents, run) for run in ("r1", "r2"))
    assert agents_by_instance(agents) == {"A": 1, "B": 1}


def test_a_hundred_copies_of_one_directory_are_seen_within_bounds() -> None:
    voices = after(*[f"r{n}" for n in range(100)] * 3, step_s=0.1)
    assert len(voices) == MOST
    assert len(alive(voices, at=30.0)) == MOST


def test_a_device_that_crashes_all_the_time_is_one() -> None:
    assert len(alive(after(*[f"r{n}" for n in range(100)], step_s=0.5))) == 1


@given(st.lists(st.integers(1, 5), max_size=30))
def test_however_often_one_agent_starts_again_it_is_never_two(lives: list[int]) -> None:
    voices = after(*[f"r{number}" for number, reports in enumerate(lives) for _ in range(reports)])
    assert len(live(voices, at=1000.0 if not voices else voices[-1].last_at, window_s=WINDOW_S)) <= 1


def test_the_instance_that_delivered_longest_ago_makes_room_unless_it_reports() -> None:
    known = {"A": 1.0, "B": 2.0, "C": 3.0}
    assert to_forget(known, newcomer="B", alive=frozenset(), most=3) == ()
    assert to_forget(known, newcomer="D", alive=frozenset(), most=4) == ()
    assert to_forget(known, newcomer="D", alive=frozenset({"D"}), most=3) == ("A",)
    assert to_forget(known, newcomer="D", alive=frozenset({"A", "D"}), most=3) == ("B",)
    assert to_forget(known, newcomer="D", alive=frozenset(known), most=3) is None


def test_a_process_that_follows_a_killed_one_keeps_its_instance_beside_another_agent() -> None:
    killed = Voice(run="a", instance="copy", first_at=0.0, last_at=5.0, returns=9)
    other = Voice(run="o", instance="original", first_at=0.0, last_at=5.9, returns=9)
    next_one = Voice(run="b", instance="copy", first_at=6.0, last_at=6.0)
    assert not must_renew((killed, other, next_one), "b")
    alive = replace(killed, last_at=6.1)
    assert must_renew((other, next_one, alive), "b"), "it has spoken since: two agents have one directory's name"
