"""What a plan says would stop it is what its gates then do."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from cloud_core.policy.rollouts import gates
from cloud_core.policy.rollouts.foresight import foretell
from cloud_core.policy.rollouts.gate_settings import Gate
from cloud_core.policy.rollouts.observations import Observation, Tally, Wave

T0 = datetime(2026, 1, 1, tzinfo=UTC)
NEW = "sha256:" + "1" * 64
GATE = Gate(alpha=0.05, max_failure_rate=0.05, min_audited=None, bake_s=0.0, max_silence_s=30.0, max_wave_s=100.0)


def judged(devices: int, failures: int, earlier: int, wave_count: int) -> str:
    """The verdict on a wave of which some failed, after healthy ones."""
    members = tuple(
        Observation(
            device_id=f"d{number}", phase="reverted" if number < failures else "committed",
            active_digest="" if number < failures else NEW, failed_digest=NEW if number < failures else "",
            silent_s=0.0, audited=10_000, audit_harm=0,
        )
        for number in range(devices)
    )  # fmt: skip
    wave = Wave(released_at=T0, observations=members)
    before = Tally(failed=0, devices=earlier)
    now = T0 + timedelta(seconds=1)
    return gates.judge(wave, before, NEW, GATE, promised_harm=0.02, wave_count=wave_count, now=now).verdict


@pytest.mark.parametrize("sizes", [(1, 3), (4,), (1, 4, 25), (100, 900)])
def test_a_wave_stops_and_holds_at_the_failures_that_were_foretold(sizes: tuple[int, ...]) -> None:
    earlier = 0
    for wave in foretell(sizes, GATE, 0.02):
        stops = wave.stopping_failures or wave.devices + 1
        # a wave of which everybody failed has no device that committed, and holds for that, too
        holds = min(wave.holding_failures, wave.devices)
        assert judged(wave.devices, stops - 1, earlier, len(sizes)) == ("hold" if stops > holds else "pass")
        if stops <= wave.devices:
            assert judged(wave.devices, stops, earlier, len(sizes)) == "fail"
        assert judged(wave.devices, holds, earlier, len(sizes)) in ("hold", "fail")
        assert judged(wave.devices, holds - 1, earlier, len(sizes)) == "pass"
        earlier += wave.devices


def test_four_devices_at_once_stop_at_three_failures() -> None:
    (wave,) = foretell((4,), GATE, None)
    assert (wave.stopping_failures, wave.holding_failures, wave.audited_rows) == (3, 1, 0)
    assert 0.4 < wave.visible_failure_rate < 0.5


def test_a_canary_of_one_stops_only_because_it_is_all_there_is() -> None:
    canary, _ = foretell((1, 3), replace(GATE, stops_when_all_revert=True), 0.02)
    assert (canary.stopping_failures, canary.stops_when_all_revert) == (None, True)
    assert canary.visible_failure_rate == pytest.approx(0.9, abs=1e-3)
    assert canary.audited_rows > 0
    assert 0.02 < canary.visible_harm <= 0.0601
