"""The gate of one wave: pass, fail or hold, with its evidence in words."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud_core.policy.rollouts import gates
from cloud_core.policy.rollouts.gate_settings import Gate, audits_needed, check_gate
from cloud_core.policy.rollouts.observations import Observation, Tally, Wave, outcome_of
from cloud_core.policy.rollouts.verdicts import GateVerdict
from penstock.errors import InvalidInput
from penstock.policy.power import detection_power

T0 = datetime(2026, 1, 1, tzinfo=UTC)
NEW, OLD = "sha256:" + "1" * 64, "sha256:" + "0" * 64
GATE = Gate(alpha=0.05, max_failure_rate=0.05, min_audited=50, bake_s=10.0, max_silence_s=30.0, max_wave_s=600.0)
NONE = Tally(failed=0, devices=0)


def device(name: str = "a", **changes: object) -> Observation:
    values: dict[str, object] = {
        "device_id": name,
        "phase": "committed",
        "active_digest": NEW,
        "failed_digest": "",
        "silent_s": 0.0,
        "audited": 100,
        "audit_harm": 0,
    }
    return Observation(**{**values, **changes})  # type: ignore[arg-type]


def judge(
    *devices: Observation,
    after_s: float = 20.0,
    promised: float | None = 0.03,
    earlier: Tally = NONE,
    acknowledged: frozenset[str] = frozenset(),
    not_awaited: frozenset[str] = frozenset(),
    gate: Gate = GATE,
    waves: int = 1,
) -> GateVerdict:
    wave = Wave(released_at=T0, observations=devices, acknowledged=acknowledged, not_awaited=not_awaited)
    now = T0 + timedelta(seconds=after_s)
    return gates.judge(wave, earlier, NEW, gate, promised_harm=promised, wave_count=waves, now=now)


def test_a_healthy_wave_passes_and_says_with_what() -> None:
    verdict = judge(device("a"), device("b", audit_harm=2))
    assert verdict.verdict == "pass"
    audit = "2 of 200 audited rows harmful (1.0%), promised at most 3.00%"
    assert verdict.reason == f"2 devices committed, 0 failed; {audit}"
    harm = verdict.test("harm")
    assert harm is not None
    assert (harm.verdict, harm.measured, harm.limit, harm.samples) == ("pass", 0.01, 0.03, 200)


def test_harm_above_the_promise_fails_with_the_numbers() -> None:
    verdict = judge(device("a", audit_harm=8), device("b", audit_harm=9))
    assert verdict.verdict == "fail"
    harm = verdict.test("harm")
    assert harm is not None
    assert harm.verdict == "fail"
    assert harm.e_value is not None
    assert harm.e_value >= 20
    assert "17 of 200 audited rows harmful (8.5%), promised at most 3.00%" in verdict.reason
    assert "limit 40 to 1" in verdict.reason  # 0.05 for two tests


def test_a_device_with_a_million_healthy_rows_hides_nothing_from_a_gate() -> None:
    harmful = [device(f"d{number}", audit_harm=20) for number in range(9)]
    for heavy in (device("heavy", audited=10**6), device("heavy", audited=10**12)):
        verdict = judge(heavy, *harmful)
        assert verdict.verdict == "fail"
        assert "harm above the promise" in verdict.reason


def test_a_wave_that_fails_two_tests_names_both() -> None:
    failed = [
        device(f"d{i}", audit_harm=50, phase="reverted", active_digest=OLD, failed_digest=NEW, error="crashed")
        for i in range(5)
    ]
    verdict = judge(*failed)
    assert [test.name for test in verdict.tests if test.verdict == "fail"] == ["failures", "harm"]
    assert "5 of 5 devices failed to update" in verdict.reason
    assert "harm above the promise" in verdict.reason


def test_every_test_has_a_name_of_its_own_and_says_something_in_every_verdict() -> None:
    for verdict in (judge(device()), judge(device(audited=1), after_s=1), judge(), judge(device(), promised=None)):
        names = [test.name for test in verdict.tests]
        assert len(set(names)) == len(names) == len(gates.TESTS)
        assert all(test.reason for test in verdict.tests)


def test_harm_is_found_before_the_bake_is_over_and_while_devices_are_pending() -> None:
    pending = device("b", phase="fetching", active_digest=OLD)
    assert judge(device("a", audit_harm=50), pending, after_s=1).verdict == "fail"


def test_a_wave_holds_until_baked_settled_and_audited() -> None:
    assert judge(device(), after_s=4).reason == "baking for another 6 s"
    pending = judge(device("a"), device("b", phase="probation"))
    assert (pending.verdict, pending.reason) == ("hold", "waiting for b (probation)")
    few = judge(device(audited=20))
    assert (few.verdict, few.reason) == (
        "hold",
        "20 of 50 audited rows; harm of 36.1% would have shown with a chance of 90%",
    )


@pytest.mark.parametrize(("failed", "devices"), [(4, 24), (2, 30), (1, 10), (1, 3)])
def test_more_failures_than_tolerated_hold_though_few_devices_prove_nothing(failed: int, devices: int) -> None:
    crashed = [
        device(f"c{i}", phase="reverted", active_digest=OLD, failed_digest=NEW, error="crashed") for i in range(failed)
    ]
    wave = [*crashed, *(device(f"d{i}") for i in range(devices - failed))]
    verdict = judge(*wave)
    assert verdict.verdict == "hold"
    assert f"{failed} of {devices} devices of this wave failed" in verdict.reason
    assert "tolerated 5.0%: c0 reverted: crashed" in verdict.reason
    # an operator has looked at them and resumed
    assert judge(*wave, acknowledged=frozenset(one.device_id for one in crashed)).verdict == "pass"


def test_a_canary_of_one_that_fails_holds() -> None:
    assert judge(device(phase="reverted", active_digest=OLD, failed_digest=NEW, error="crashed")).verdict == "hold"


def test_failures_within_the_tolerance_pass() -> None:
    crashed = device("c", phase="reverted", active_digest=OLD, failed_digest=NEW, error="crashed")
    assert judge(crashed, *(device(f"d{i}") for i in range(19))).verdict == "pass"


def test_an_uncertified_artifact_needs_no_audit() -> None:
    verdict = judge(device(audited=0), promised=None)
    assert verdict.verdict == "pass"
    assert "no certificate" in verdict.reason


@pytest.mark.parametrize(
    ("changes", "outcome"),
    [
        ({}, "committed"),
        ({"phase": "probation"}, "pending"),
        ({"phase": "fetching", "active_digest": OLD}, "pending"),
        ({"phase": "committed", "active_digest": OLD}, "pending"),
        ({"phase": "reverted", "active_digest": OLD, "failed_digest": NEW}, "failed"),
        ({"phase": "committed", "active_digest": OLD, "failed_digest": NEW}, "failed"),
        ({"silent_s": 30.0}, "committed"),
        ({"silent_s": 30.1}, "failed"),
        ({"is_cloud_only": True}, "failed"),
        ({"is_cloud_only": True, "active_digest": OLD, "phase": "fetching"}, "pending"),
        ({"is_handed": False}, "unreached"),
        ({"is_handed": False, "silent_s": 99.0, "active_digest": OLD}, "unreached"),
        # it failed with it long ago, and was not asked again yet
        ({"is_handed": False, "phase": "reverted", "active_digest": OLD, "failed_digest": NEW}, "unreached"),
    ],
)
def test_outcome_of_an_update(changes: dict[str, object], outcome: str) -> None:
    assert outcome_of(device(**changes), NEW, GATE.max_silence_s, T0, T0 + timedelta(seconds=5)) == outcome


def test_a_device_that_cannot_fetch_counts_only_after_a_while() -> None:
    unlucky = device(phase="failed", active_digest=OLD, error="registry is restarting")
    assert outcome_of(unlucky, NEW, GATE.max_silence_s, T0, T0 + timedelta(seconds=29)) == "pending"
    assert outcome_of(unlucky, NEW, GATE.max_silence_s, T0, T0 + timedelta(seconds=31)) == "failed"


def test_one_dead_device_among_many_does_not_block() -> None:
    devices = [device(f"d{i:02}") for i in range(40)]
    verdict = judge(*devices, device("dead", silent_s=99.0, active_digest=OLD, audited=0))
    assert verdict.verdict == "pass"
    assert "40 devices committed, 1 failed" in verdict.reason


def test_many_failures_fail_and_are_named() -> None:
    reverted = [
        device(f"d{i}", phase="reverted", active_digest=OLD, failed_digest=NEW, error="golden outputs differ")
        for i in range(5)
    ]
    verdict = judge(*reverted)
    assert verdict.verdict == "fail"
    assert "5 of 5 devices failed to update, tolerated 5.0%: d0 reverted: golden outputs differ" in verdict.reason
    assert "2 more" in verdict.reason


def test_failures_that_come_faster_than_commits_do_not_stop_a_rollout_within_its_tolerance() -> None:
    bad = [device(f"b{i}", phase="reverted", active_digest=OLD, failed_digest=NEW) for i in range(4)]
    probation = [device(f"p{i:02}", phase="probation") for i in range(96)]
    assert judge(*bad, *probation).verdict == "hold"
    assert judge(*bad, *(device(f"p{i:02}") for i in range(96))).verdict == "pass"


def test_failures_add_up_over_waves() -> None:
    bad = device("b", silent_s=99.0)
    assert judge(bad, device("c")).verdict != "fail"
    assert judge(bad, device("c"), earlier=Tally(failed=3, devices=4)).verdict == "fail"


def test_a_large_healthy_first_wave_does_not_hide_a_failing_second_one() -> None:
    bad = [device(f"b{i}", silent_s=99.0) for i in range(6)]
    assert judge(*bad, earlier=Tally(failed=0, devices=1000)).verdict == "fail"


def test_a_wave_in_which_nobody_committed_never_passes() -> None:
    verdict = judge(device("dead", silent_s=99.0), promised=None)
    assert verdict.verdict == "hold"
    assert "no device of this wave has committed: dead silent for 99 s" in verdict.reason


def test_acknowledged_failures_count_no_more_but_recovered_devices_do() -> None:
    dead = device("dead", silent_s=99.0, audited=0)
    assert judge(dead, acknowledged=frozenset({"dead"})).verdict == "pass"
    assert judge(dead, device("b"), acknowledged=frozenset({"dead"})).verdict == "pass"
    back = judge(device("dead", audited=10), acknowledged=frozenset({"dead"}))
    assert back.verdict == "hold"
    assert back.reason.startswith("10 of 50 audited rows")


def off(name: str) -> Observation:
    """Describe a device that was switched off before it could be told."""
    return device(name, is_handed=False, silent_s=99.0, active_digest=OLD, audited=0)


def test_devices_that_are_switched_off_are_no_failures() -> None:
    devices = [*(device(f"d{i}") for i in range(18)), off("x"), off("y")]
    waiting = judge(*devices, after_s=590)
    assert (waiting.verdict, waiting.wake_at) == ("hold", T0 + timedelta(seconds=GATE.max_unreached_s, milliseconds=1))
    assert waiting.reason == "2 of 20 devices not reached yet (x, y), tolerated 20.0% after 600 s"
    passed = judge(*devices, after_s=601)
    assert passed.verdict == "pass"
    assert "18 devices committed, 0 failed, 2 not reached" in passed.reason


def test_more_devices_off_than_tolerated_hold_until_an_operator_no_longer_waits_for_them() -> None:
    devices = [device("a"), off("x"), off("y")]
    assert judge(*devices, after_s=9999).verdict == "hold"
    assert judge(*devices, after_s=9999, not_awaited=frozenset({"x", "y"})).verdict == "pass"


def test_a_device_that_nobody_waits_for_counts_once_it_was_told() -> None:
    bad = device("x", phase="reverted", active_digest=OLD, failed_digest=NEW, error="crashed")
    verdict = judge(device("a"), bad, not_awaited=frozenset({"x"}))
    assert verdict.verdict == "hold"
    assert "1 of 2 devices of this wave failed" in verdict.reason


def test_devices_that_are_off_do_not_dilute_the_failures_of_the_others() -> None:
    crashed = [device(f"c{i}", phase="reverted", active_digest=OLD, failed_digest=NEW) for i in range(5)]
    assert judge(*crashed, *(off(f"o{i}") for i in range(1000))).verdict == "fail"


def test_a_wave_that_is_off_as_a_whole_holds() -> None:
    verdict = judge(off("x"), after_s=9999)
    assert (verdict.verdict, verdict.wake_at) == ("hold", None)


def test_a_wave_that_is_off_as_a_whole_holds_also_where_all_may_be_off() -> None:
    gate = replace(GATE, max_unreached_rate=1.0, min_audited=0)
    verdict = judge(off("x"), after_s=590, gate=replace(gate, max_unreached_s=0.0))
    assert (verdict.verdict, verdict.reason) == ("hold", "no device of this wave has committed")


def test_devices_that_come_back_and_fail_after_their_wave_passed_hold_the_next_one() -> None:
    healthy = [device(f"d{i}") for i in range(20)]
    assert judge(*healthy, earlier=Tally(failed=1, devices=10)).verdict == "pass"
    held = judge(*healthy, earlier=Tally(failed=2, devices=10))
    assert held.verdict == "hold"
    assert "2 of 30 devices of the waves so far failed (6.7%), tolerated 5.0%" in held.reason


def test_the_error_budget_is_shared_by_all_waves_and_tests() -> None:
    # evidence of 83 to 1: enough for one wave with a limit of 40, not for ten with one of 400
    devices = device("a", audit_harm=8), device("b", audit_harm=9)
    assert judge(*devices, waves=1).verdict == "fail"
    shared = judge(*devices, waves=10)
    assert shared.verdict == "hold"
    assert "17 of 200 audited rows harmful (8.5%), promised at most 3.00%" in shared.reason


def test_a_share_of_harm_above_the_promise_holds_though_it_proves_nothing() -> None:
    assert judge(device(audit_harm=4)).verdict == "hold"
    assert judge(device(audit_harm=3)).verdict == "pass"
    asks_nothing = replace(GATE, min_audited=0)
    assert judge(device(audit_harm=4), gate=asks_nothing).verdict == "pass"


def test_audited_rows_follow_from_what_they_have_to_see() -> None:
    gate = replace(GATE, min_audited=None)
    needed = audits_needed(gate, 0.02, 3)
    assert detection_power(needed, 0.06, 0.02, gate.alpha / 12) >= 0.9
    assert judge(device(audited=needed - 1), promised=0.02, gate=gate, waves=3).verdict == "hold"
    assert judge(device(audited=needed), promised=0.02, gate=gate, waves=3).verdict == "pass"
    assert audits_needed(replace(gate, detectable_ratio=2.0), 0.02, 3) > 2 * needed
    assert audits_needed(gate, None, 3) == 0
    assert audits_needed(replace(gate, min_audited=0), 0.02, 3) == 0
    # of a promise of 0, and of one that can hardly be broken
    assert 0 < audits_needed(gate, 0.0, 3) < 10_000
    assert 0 < audits_needed(gate, 0.9, 3) < 10_000
    assert audits_needed(gate, 1.0, 3) == 0


def test_what_a_pass_is_worth_is_said() -> None:
    tolerated = judge(*(device(f"d{i}") for i in range(24))).test("tolerated")
    assert tolerated is not None
    assert tolerated.reason.endswith("; a rate of 15% would have shown with a chance of 90%")


def test_a_promise_of_zero_is_broken_by_one_case() -> None:
    assert judge(device(audit_harm=1), promised=0.0).verdict == "fail"


@given(
    st.lists(
        st.builds(
            Observation,
            device_id=st.sampled_from([f"d{i}" for i in range(20)]),
            phase=st.sampled_from(["idle", "fetching", "proving", "probation", "committed", "reverted", "failed"]),
            active_digest=st.sampled_from([OLD, NEW, ""]),
            failed_digest=st.sampled_from([OLD, NEW, ""]),
            silent_s=st.floats(0, 100),
            audited=st.integers(0, 2**62),
            audit_harm=st.integers(0, 2**62),
            is_handed=st.booleans(),
            is_cloud_only=st.booleans(),
            error=st.text(max_size=30),
        ),
        max_size=20,
        unique_by=lambda d: d.device_id,
    ),
    st.floats(0, 1000),
    st.one_of(st.none(), st.floats(0, 1)),
)
def test_any_observation_gets_a_verdict_with_a_reason_and_later_wake_up(
    devices: list[Observation], after_s: float, promised: float | None
) -> None:
    verdict = judge(*devices, after_s=after_s, promised=promised)
    assert verdict.reason
    if verdict.wake_at is not None:
        assert verdict.wake_at > T0 + timedelta(seconds=after_s)
    if verdict.verdict == "pass" and devices:
        assert any(d.phase == "committed" and d.active_digest == NEW for d in devices)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"alpha": 0.0}, "gate.alpha"),
        ({"alpha": float("nan")}, "gate.alpha"),
        ({"max_failure_rate": 1.0}, "gate.max_failure_rate"),
        ({"bake_s": -1.0}, "gate.bake_s"),
        ({"max_silence_s": float("inf")}, "gate.max_silence_s"),
        ({"max_wave_s": 5.0}, "gate.max_wave_s"),
        ({"max_unreached_s": -1.0}, "gate.max_unreached_s"),
        ({"max_unreached_rate": 1.1}, "gate.max_unreached_rate"),
        ({"power": 1.0}, "gate.power"),
        ({"detectable_ratio": 1.0}, "gate.detectable_ratio"),
        ({"detectable_ratio": float("nan")}, "gate.detectable_ratio"),
    ],
)
def test_gate_settings_that_make_no_sense_are_refused(changes: dict[str, float], field: str) -> None:
    values = {name: getattr(GATE, name) for name in Gate.__slots__}
    with pytest.raises(InvalidInput) as caught:
        check_gate(Gate(**{**values, **changes}))
    assert caught.value.field == field
