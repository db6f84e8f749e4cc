"""Decides about the arms of a split: whether they were shown to be good, and what happens to the split then. Pure.

The tests are those of the fleet's gates: sequential, so that they may be looked at after every request, with one error
budget for all arms, steps and tests of a split. A split fails when one test of one arm fails, holds while one holds,
and passes otherwise. A failed split ends, and everything goes to the default version again: that moves a pointer and
loads nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from cloud_core.policy.rollouts.verdicts import GateTest, GateVerdict, Verdict
from cloud_core.policy.traffic import Arm, CanaryGate, Split
from penstock import wording
from penstock.policy.sequential import e_value_above

_TESTS = 3
_SLOW_RATIO = 2.0
_SLOW_SHARE = 0.05  # of the default version's requests are slower than what is doubled
_LEAST_SEEN = 100  # requests of the default version, before it says what is slow

FAULTS = frozenset({"internal", "unavailable", "deadline-exceeded"})
"""Outcomes that count against the version that gave them. What a caller did wrong, or admission refused, does not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What an arm did since its step began.

    Attributes:
        requests: that were answered or failed by a fault; others say nothing of a version.
        failed: of these, by a fault.
        slow: of these, slower than the limit; None while nobody knows what is slow.
        compared: shadowed rows of the version that were compared, or failed.
        disagreed: of these, those that it answered in another way, or not at all.
    """

    requests: int = 0
    failed: int = 0
    slow: int | None = 0
    compared: int = 0
    disagreed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """Leave the split as it is."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Advance:
    """Give the only arm more."""

    split: Split
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Promote:
    """Make the only arm the default version, and end the split."""

    arm: Arm
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Abort:
    """End the split: everything goes to the default version again."""

    reason: str


Step = Hold | Advance | Promote | Abort


def judge(split: Split, evidence: Mapping[str, Evidence], now: float) -> dict[str, GateVerdict]:
    """Run all tests on every arm. ``now``: UNIX seconds, as ``split.since``."""
    alpha = split.gate.alpha / (_TESTS * len(split.arms) * max(1, len(split.steps)))
    return {
        arm.name: _verdict(_tests(split, evidence.get(arm.name, Evidence()), alpha=alpha, now=now))
        for arm in split.arms
    }


def decide(split: Split, verdicts: Mapping[str, GateVerdict], *, now: float) -> Step:
    """Say what happens to a split."""
    reasons = [f"{name}: {verdict.reason}" for name, verdict in verdicts.items()]
    failed = [text for text, verdict in zip(reasons, verdicts.values(), strict=True) if verdict.verdict == "fail"]
    if failed:
        return Abort(reason="; ".join(failed))
    if any(verdict.verdict == "hold" for verdict in verdicts.values()) or not split.steps:
        return Hold(reason="; ".join(reasons))
    return next_step(split, "; ".join(reasons), now=now)


def next_step(split: Split, reason: str, *, now: float) -> Step:
    """Say what follows when the present step of a split is passed, by its gate or by an operator's word."""
    arm = split.arms[0]
    if not split.steps:
        return Hold(reason="the split has no steps to go on with")
    after = split.step + 1
    if after >= len(split.steps):
        return Hold(reason=f"the last step is passed: {reason}")
    percent = split.steps[after]
    if percent >= 100:
        return Promote(arm=arm, reason=reason)
    moved = replace(split, arms=(replace(arm, percent=percent),), step=after, since=now)
    return Advance(split=moved, reason=reason)


def slow_limit(bounds: Sequence[float], counts: Sequence[int]) -> float:
    """Return what is slow, from a histogram of the default version: twice what a twentieth of its requests exceed.

    Returns:
        One of the bounds, so that a histogram tells what is above it; 0 while too few requests were seen.
    """
    total = sum(counts)
    if total < _LEAST_SEEN:
        return 0.0
    allowed = total * (1 - _SLOW_SHARE)
    seen, usual = 0, bounds[-1]
    for bound, count in zip(bounds, counts, strict=False):
        seen += count
        if seen >= allowed:
            usual = bound
            break
    return min((bound for bound in bounds if bound >= usual * _SLOW_RATIO), default=bounds[-1])


def _verdict(tests: tuple[GateTest, ...]) -> GateVerdict:
    for verdict in ("fail", "hold"):
        found = [test.reason for test in tests if test.verdict == verdict]
        if found:
            return GateVerdict(verdict=_as_verdict(verdict), reason="; ".join(found), tests=tests)
    return GateVerdict(verdict="pass", reason="; ".join(test.reason for test in tests if test.samples), tests=tests)


def _as_verdict(text: str) -> Verdict:
    return "fail" if text == "fail" else "hold"


def _tests(split: Split, seen: Evidence, *, alpha: float, now: float) -> tuple[GateTest, ...]:
    gate = split.gate
    return (
        _rate("errors", seen.failed, seen.requests, gate.max_error_rate, alpha, "requests failed"),
        _slow(gate, seen, alpha),
        _rate("disagreement", seen.disagreed, seen.compared, gate.max_disagreement, alpha, "shadowed rows differ"),
        _requests(gate, seen),
        _bake(gate, now - split.since),
    )


def _slow(gate: CanaryGate, seen: Evidence, alpha: float) -> GateTest:
    if seen.slow is None:
        reason = "what is slow is not known yet: the default version has answered too few requests"
        return GateTest(
            name="latency", verdict="hold", reason=reason, measured=0.0, limit=gate.max_slow_rate, samples=0
        )
    what = f"requests took longer than {gate.slow_s:g} s"
    return _rate("latency", seen.slow, seen.requests, gate.max_slow_rate, alpha, what)


def _rate(name: str, bad: int, count: int, limit: float, alpha: float, what: str) -> GateTest:
    """Compare a share with its limit. Above it without proof is no sign of health: it holds."""
    e_value = e_value_above(min(bad, count), count, limit)
    share = bad / count if count else 0.0
    reason = f"{bad} of {count} {what}, tolerated {wording.percent(limit)}"
    verdict: Verdict = "hold" if share > limit else "pass"
    if e_value >= 1 / alpha:
        verdict, reason = "fail", f"{reason} (evidence {min(e_value, 1e15):,.0f} to 1, limit {1 / alpha:,.0f} to 1)"
    return GateTest(
        name=name, verdict=verdict, reason=reason, measured=share, limit=limit, samples=count, e_value=e_value
    )


def _requests(gate: CanaryGate, seen: Evidence) -> GateTest:
    is_short = seen.requests < gate.min_requests
    return GateTest(
        name="requests",
        verdict="hold" if is_short else "pass",
        reason=f"{seen.requests} of {gate.min_requests} requests answered",
        measured=seen.requests,
        limit=gate.min_requests,
        samples=0,
    )


def _bake(gate: CanaryGate, ran_s: float) -> GateTest:
    is_baking = ran_s < gate.bake_s
    left_s = math.ceil(gate.bake_s - ran_s)
    return GateTest(
        name="bake",
        verdict="hold" if is_baking else "pass",
        reason=f"baking for another {left_s} s" if is_baking else f"baked for {gate.bake_s:g} s",
        measured=ran_s,
        limit=gate.bake_s,
        samples=0,
    )
