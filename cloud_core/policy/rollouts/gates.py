"""Decides whether a wave passes: a list of named tests over what its devices did, each with one of three verdicts.

Decides from observations, the promise and ``now``; releases nothing, reverts nothing, reads no clock. A wave fails when
one of the tests fails, holds while one of them holds, and passes otherwise. ``harm`` (audited answers that the device
kept and the cloud would have given differently) and ``failures`` (updates that failed) are sequential tests: both are
e-processes, so they may be looked at after every report. They share the rollout's error budget with those of the other
waves. The others say what a wave must have shown before it passes: a version passes because it was seen to be good, not
because too little was seen to call it bad.

A new test is a function from :class:`Case` to :class:`GateTest`, and a row of ``TESTS``. What carries verdicts (the
store, the wire, the command line) knows no test by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from cloud_core.policy.rollouts.gate_settings import Gate, alpha_of_pooled, alpha_of_test, audits_needed
from cloud_core.policy.rollouts.observations import Observation, Outcome, Tally, Wave, outcomes_of, tally
from cloud_core.policy.rollouts.verdicts import GateTest, GateVerdict, Verdict
from penstock import wording
from penstock.policy.power import detectable_rate, detectable_share
from penstock.policy.sequential import e_value_above

_MAX_NAMED = 3
_MAX_ERROR = 120


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Everything that the tests of one wave look at.

    Attributes:
        earlier: failures of the waves before this one.
        target: digest of the artifact that is rolled out.
        alpha: the part of the error budget that each sequential test of this wave has.
        promised_harm: the certificate's audit bound; None for an artifact without one (its devices keep no answer, so
            there is no harm to watch).
        outcomes: how the updates went, by device; acknowledged failures are left out.
    """

    wave: Wave
    earlier: Tally
    target: str
    gate: Gate
    alpha: float
    promised_harm: float | None
    now: datetime
    outcomes: Mapping[str, Outcome]

    @property
    def own(self) -> Tally:
        """Count the failures of this wave."""
        return tally(self.outcomes.values())

    @property
    def audited(self) -> int:
        """Count audited rows of all devices."""
        return sum(device.audited for device in self.wave.observations)

    @property
    def unreached_share(self) -> float:
        """Return the share of devices that were not told yet."""
        return len(self.having("unreached")) / len(self.outcomes) if self.outcomes else 0.0

    @property
    def awaits_unreached(self) -> bool:
        """Tell whether the wave waits for devices that were not told: for a while for any, then where they are many."""
        waited_s = (self.now - self.wave.released_at).total_seconds()
        limit = 0.0 if waited_s <= self.gate.max_unreached_s else self.gate.max_unreached_rate
        return self.unreached_share > limit

    def having(self, outcome: Outcome) -> list[Observation]:
        """Return the devices whose update went that way."""
        return [device for device in self.wave.observations if self.outcomes.get(device.device_id) == outcome]


def judge(
    wave: Wave, earlier: Tally, target: str, gate: Gate, *, promised_harm: float | None, wave_count: int, now: datetime
) -> GateVerdict:
    """Run all tests on one released wave of ``wave_count``; the arguments are explained at :class:`Case`."""
    asked = replace(gate, min_audited=audits_needed(gate, promised_harm, wave_count))
    outcomes = outcomes_of(wave, target, gate.max_silence_s, now)
    case = Case(
        wave=wave, earlier=earlier, target=target, gate=asked, alpha=alpha_of_test(gate, wave_count),
        promised_harm=promised_harm, now=now, outcomes=outcomes,
    )  # fmt: skip
    tests = tuple(run(case) for run in TESTS)
    failed = [test.reason for test in tests if test.verdict == "fail"]
    if failed:
        return GateVerdict(verdict="fail", reason="; ".join(failed), tests=tests)
    holding = [test.reason for test in tests if test.verdict == "hold"]
    if holding:
        wake_at = min((test.wake_at for test in tests if test.wake_at is not None), default=None)
        return GateVerdict(verdict="hold", reason="; ".join(holding), tests=tests, wake_at=wake_at)
    # what was merely waited for needs no words once it is there
    shown = [test.reason for test in tests if test.e_value is not None]
    return GateVerdict(verdict="pass", reason="; ".join(shown), tests=tests)


def _test_harm(case: Case) -> GateTest:
    """Compare audited rows that were harmful with what the certificate promises.

    The e-value is the mean of two, itself an e-value: of all rows together, which sees a little harm on many devices,
    and the mean of the devices' own. With the first alone, one device with a million healthy rows would hide what all
    others see.
    """
    audited, promised = case.audited, case.promised_harm
    # a device that claims more harm than audits would make the e-value impossible to compute
    devices = case.wave.observations
    harm = sum(min(device.audit_harm, device.audited) for device in devices)
    e_value = 1.0
    if promised is not None and devices:
        by_device = sum(_device_e_value(device, promised) / len(devices) for device in devices)
        e_value = (e_value_above(harm, audited, promised) + by_device) / 2
    audit = _audit_text(harm, audited, promised)
    share = harm / audited if audited else 0.0
    verdict: Verdict = "pass"
    # a share above the promise is no proof that the promise is broken; it is no sign that it is kept, either
    if promised is not None and case.gate.min_audited and share > promised:
        verdict = "hold"
    if e_value >= 1 / case.alpha:
        verdict, audit = "fail", f"harm above the promise: {audit} ({_evidence_text(e_value, case.alpha)})"
    return GateTest(
        name="harm",
        verdict=verdict,
        reason=audit,
        measured=share,
        limit=promised or 0.0,
        samples=audited,
        e_value=e_value,
    )


def _device_e_value(device: Observation, promised: float) -> float:
    """Return the evidence of a device: the mean over its instances, so that no copy hides what another one sees."""
    counts = device.by_instance or ((device.audited, device.audit_harm),)
    return sum(e_value_above(min(harm, audited), audited, promised) for audited, harm in counts) / len(counts)


def _test_failures(case: Case) -> GateTest:
    """Compare failed updates with the tolerated share, in this wave and in all waves together.

    The e-value is the mean of the two (itself an e-value). With this wave's alone, one failure here and one there would
    go unnoticed; with all waves' alone, a large healthy first wave would hide a failing second one.
    """
    gate, own = case.gate, case.own
    both = own + case.earlier
    e_value = (
        e_value_above(own.failed, own.devices, gate.max_failure_rate)
        + e_value_above(both.failed, both.devices, gate.max_failure_rate)
    ) / 2
    if e_value >= 1 / case.alpha:
        verdict: Verdict = "fail"
        tolerated = wording.percent(gate.max_failure_rate)
        count = f"{both.failed} of {both.devices} devices failed to update, tolerated {tolerated}"
        reason = f"{count}: {_failures_text(case)} ({_evidence_text(e_value, case.alpha)})"
    else:
        verdict, reason = "pass", f"{_devices(own.devices - own.failed)} committed, {own.failed} failed"
        if case.having("pending"):
            reason = f"{own.failed} of {_devices(own.devices)} failed"
        unreached = len(case.having("unreached"))
        reason += f", {unreached} not reached" if unreached else ""
        accepted = len(case.wave.observations) - len(case.outcomes)
        reason += f", {accepted} passed over by the operator" if accepted else ""
    return GateTest(
        name="failures",
        verdict=verdict,
        reason=reason,
        measured=both.share,
        limit=gate.max_failure_rate,
        samples=both.devices,
        e_value=e_value,
        wake_at=_next_silence(case),
    )


def _test_tolerated(case: Case) -> GateTest:
    """Hold while more devices failed than is tolerated, of this wave or of all so far, though too few to prove it.

    On few devices the sequential test sees nothing: 4 of 24 failing are evidence of 3 to 1. What could not be proven
    bad was not seen to be good; a person looks, and resumes or aborts. Of all so far, because devices that a wave
    passed without may come back and fail. What a pass is worth is said: a canary of one does not see one in twenty.
    """
    own, both, limit = case.own, case.own + case.earlier, case.gate.max_failure_rate
    counted, where = (own, "this wave") if own.share >= both.share else (both, "the waves so far")
    is_above = counted.share > limit
    count = f"{counted.failed} of {_devices(counted.devices)} of {where} failed ({wording.percent(counted.share)})"
    count += f", tolerated {wording.percent(limit)}"
    seen = detectable_share(own.devices, limit, case.gate.power)
    worth = f"a rate of {seen:.0%} would have shown with a chance of {case.gate.power:.0%}" if own.devices else ""
    return GateTest(
        name="tolerated",
        verdict="hold" if is_above else "pass",
        reason=f"{count}: {_failures_text(case)}" if is_above else "; ".join(filter(None, (count, worth))),
        measured=counted.share,
        limit=limit,
        samples=counted.devices,
    )


def _test_reverted(case: Case) -> GateTest:
    """Fail when every device of the wave took the version and went back by itself, as a canary of one may.

    No sequential test can say so of one device: 1 of 1 is evidence of 10 to 1. This is outside of the error budget: a
    good version of which one in twenty updates fails is stopped by one canary in twenty.
    """
    reverted = [device for device in case.having("failed") if device.phase == "reverted"]
    is_lost = bool(reverted) and len(reverted) == len(case.outcomes)
    count = "the only device of this wave" if len(reverted) == 1 else f"all {len(reverted)} devices of this wave"
    return GateTest(
        name="reverted",
        verdict=("fail" if case.gate.stops_when_all_revert else "hold") if is_lost else "pass",
        reason=f"{count} went back: {_failures_text(case)}"
        if is_lost
        else f"{len(reverted)} of {_devices(len(case.outcomes))} went back",
        measured=len(reverted),
        limit=len(case.outcomes),
        samples=len(case.outcomes),
    )


def _test_settled(case: Case) -> GateTest:
    """Hold while a device is still updating."""
    pending = case.having("pending")
    named = _listed([f"{device.device_id} ({_doing(device)})" for device in pending])
    return GateTest(
        name="settled",
        verdict="hold" if pending else "pass",
        reason=f"waiting for {named}" if pending else "no device is still updating",
        measured=len(pending),
        limit=0,
        samples=len(case.outcomes),
    )


def _test_reached(case: Case) -> GateTest:
    """Hold for devices that did not come by to be told, for a while; then pass without them when they are few.

    A device that is switched off is no failure and no success. It takes the version when it comes back.
    """
    unreached, gate = case.having("unreached"), case.gate
    over_at = _just_after(case.wave.released_at, gate.max_unreached_s)
    named = _listed([device.device_id for device in unreached])
    reason = "all devices were told to update"
    if unreached:
        count = f"{len(unreached)} of {_devices(len(case.outcomes))} not reached yet ({named})"
        reason = f"{count}, tolerated {wording.percent(gate.max_unreached_rate)} after {gate.max_unreached_s:g} s"
    return GateTest(
        name="reached",
        verdict="hold" if case.awaits_unreached else "pass",
        reason=reason,
        measured=case.unreached_share,
        limit=gate.max_unreached_rate,
        samples=len(case.outcomes),
        wake_at=over_at if unreached and case.now < over_at else None,
    )


def _test_committed(case: Case) -> GateTest:
    """Hold while no device has committed. A wave of few devices can fail as a whole without an e-value that says so."""
    committed = len(case.having("committed"))
    # while one is pending, the wave waits for that one; with every failure accepted, there is nothing left to wait for
    is_lacking = bool(case.outcomes) and not committed and not case.having("pending") and not case.awaits_unreached
    why = f": {_failures_text(case)}" if case.having("failed") else ""
    return GateTest(
        name="committed",
        verdict="hold" if is_lacking else "pass",
        reason=f"no device of this wave has committed{why}" if is_lacking else f"{_devices(committed)} committed",
        measured=committed,
        limit=1,
        samples=len(case.outcomes),
    )


def _test_bake(case: Case) -> GateTest:
    """Hold until the wave has run long enough."""
    ran_s, bake_s = (case.now - case.wave.released_at).total_seconds(), case.gate.bake_s
    is_baking = ran_s < bake_s
    return GateTest(
        name="bake",
        verdict="hold" if is_baking else "pass",
        reason=f"baking for another {bake_s - ran_s:.0f} s" if is_baking else f"baked for {bake_s:g} s",
        measured=ran_s,
        limit=bake_s,
        samples=len(case.outcomes),
        wake_at=_just_after(case.wave.released_at, bake_s) if is_baking else None,
    )


def _test_audited(case: Case) -> GateTest:
    """Hold until enough rows were audited for the harm test to have seen the contrary."""
    audited, needed = case.audited, case.gate.min_audited or 0
    # without a certificate nothing is audited, and when every failure was accepted no device is left to audit
    is_needed = case.promised_harm is not None and bool(case.outcomes)
    return GateTest(
        name="audited",
        verdict="hold" if is_needed and audited < needed else "pass",
        reason=_power_text(case, audited, needed) if is_needed else "no audit is needed",
        measured=audited,
        limit=needed if is_needed else 0,
        samples=len(case.outcomes),
    )


TESTS: tuple[Callable[[Case], GateTest], ...] = (
    _test_failures,
    _test_harm,
    _test_tolerated,
    _test_reverted,
    _test_settled,
    _test_reached,
    _test_committed,
    _test_bake,
    _test_audited,
)
"""All tests, in the order in which their reasons are told."""


def _next_silence(case: Case) -> datetime | None:
    """Return the next moment at which a device becomes a failure because no report came."""
    limit_s, now = case.gate.max_silence_s, case.now
    # the first is when a device that cannot fetch or load begins to count (see outcome_of)
    moments = [_just_after(case.wave.released_at, limit_s)]
    heard = (
        device.silent_s
        for device in case.wave.observations
        if device.silent_s <= limit_s and case.outcomes.get(device.device_id) not in (None, "unreached")
    )
    longest_s = max(heard, default=None)
    if longest_s is not None:
        moments.append(_just_after(now, limit_s - longest_s))
    return min((moment for moment in moments if moment > now), default=None)


def _just_after(since: datetime, seconds: float) -> datetime:
    """Return a moment strictly later than a limit: "silent for longer than" is not "silent for"."""
    return since + timedelta(seconds=seconds, milliseconds=1)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    return ", ".join(names[:_MAX_NAMED]) + more


def _doing(device: Observation) -> str:
    if device.is_duplicated:
        return "several agents report under this id"
    if device.error:
        return wording.brief(device.error, _MAX_ERROR)
    # at rest with another artifact: it was not told of this one yet
    return device.phase if device.phase in ("fetching", "proving", "probation", "failed") else "not begun"


def _failures_text(case: Case) -> str:
    failed = case.having("failed")
    named = [f"{device.device_id} {_failure(device, case.gate)}" for device in failed[:_MAX_NAMED]]
    if len(failed) > _MAX_NAMED:
        named.append(f"{len(failed) - _MAX_NAMED} more")
    return ", ".join(named) or "failures of earlier waves"


def _failure(device: Observation, gate: Gate) -> str:
    if device.silent_s > gate.max_silence_s:
        return f"silent for {device.silent_s:.0f} s"
    if device.is_cloud_only:
        return "went cloud-only: its own audit found harm above the promise"
    what = "reverted" if device.phase == "reverted" else "failed"
    return f"{what}: {wording.brief(device.error, _MAX_ERROR)}" if device.error else what


def _audit_text(harm: int, audited: int, promised: float | None) -> str:
    if promised is None:
        return "no certificate, so nothing is kept on the device and nothing audited"
    share = f" ({wording.percent(harm / audited)})" if audited else ""
    return f"{harm} of {audited} audited rows harmful{share}, promised at most {wording.bound(promised)}"


def _evidence_text(e_value: float, alpha: float) -> str:
    return f"evidence {min(e_value, 1e15):,.0f} to 1, limit {1 / alpha:,.0f} to 1"


def _power_text(case: Case, audited: int, needed: int) -> str:
    """Write how many rows there are, and which harm they would have shown."""
    promised, power = case.promised_harm or 0.0, case.gate.power
    seen = detectable_rate(audited, promised, alpha_of_pooled(case.alpha), power)
    shown = f"harm of {wording.percent(seen)} would have shown with a chance of {power:.0%}"
    worth = shown if seen < 1 else "too few to see harm"
    return f"{audited} of {needed} audited rows; {worth}"


def _devices(count: int) -> str:
    return f"{count} device" if count == 1 else f"{count} devices"
