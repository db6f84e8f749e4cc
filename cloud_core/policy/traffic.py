"""What an operator may say about a model's traffic, and which version a request goes to. Pure.

Values that are stored, sent and shown: a split by weights, a shadow, pins, unloaded versions, a version policy. A
request that names a version is never moved; only those that name none take part in a split.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Literal

from penstock.errors import Conflict, InvalidInput

BASE = "base"
"""The arm of requests that go to the default version."""

MAX_ARMS = 8
_BUCKETS = 10_000  # weights are told apart down to a hundredth of a percent
_PARAMETER = re.compile(r"parameter:([A-Za-z0-9_.-]{1,64})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """A version that gets a part of the requests that name none.

    Attributes:
        name: what answers and metrics call it: the version as the operator gave it.
        digest: of the artifact.
        percent: of the requests.
    """

    name: str
    digest: str
    percent: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CanaryGate:
    """What the arms of a split must show.

    Attributes:
        alpha: error budget of a split: the chance that any test of any step ever stops a version that keeps within
            the limits.
        max_error_rate: tolerated share of requests that fail by the version's fault.
        max_slow_rate: tolerated share of requests that take longer than ``slow_s``.
        slow_s: what is slow; 0 for twice what all but the slowest twentieth of the default version's take, found out
            when it has answered ``min_requests``.
        max_disagreement: tolerated share of shadowed rows that the version answers in another way.
        min_requests: that each arm answers before a step may pass.
        bake_s: shortest time of a step.
    """

    alpha: float = 0.05
    max_error_rate: float = 0.01
    max_slow_rate: float = 0.1
    slow_s: float = 0.0
    max_disagreement: float = 0.1
    min_requests: int = 500
    bake_s: float = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """How requests that name no version are divided; what no arm gets goes to the default version.

    Attributes:
        sticky: what keeps a caller with one version: "" (each request is drawn), ``tenant``, ``header`` (x-sticky-key)
            or ``parameter:NAME``. A request that lacks it is drawn.
        salt: makes two splits divide callers in different ways.
        steps: percentages that the only arm goes through, as its gate passes; at 100 it becomes the default version.
            Empty for a split that stays as it is.
        step: index of the step that is under way.
        since: when this step began (UNIX seconds).
    """

    arms: tuple[Arm, ...]
    sticky: str = ""
    salt: str = ""
    gate: CanaryGate = CanaryGate()
    steps: tuple[float, ...] = ()
    step: int = 0
    since: float = 0.0

    @property
    def course(self) -> tuple[object, ...]:
        """Return what makes it the same step of the same split; what is tolerated may be changed meanwhile."""
        return self.arms, self.salt, self.sticky, self.step, self.since


@dataclass(frozen=True, slots=True, kw_only=True)
class Shadow:
    """A version that gets copies of requests after they were answered; its answers are compared and thrown away.

    Attributes:
        share: of the answered requests, up to 1.
    """

    name: str
    digest: str
    share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionPolicy:
    """Which versions of a model are served, beside its default and those that a split, a shadow or a pin names.

    Attributes:
        kind: ``all``; ``latest`` for the ``latest`` that were pushed last; ``given`` for those in ``given``.
        given: tags.
    """

    kind: Literal["all", "latest", "given"] = "all"
    latest: int = 1
    given: tuple[str, ...] = ()

    def __str__(self) -> str:
        match self.kind:
            case "latest":
                return f"latest {self.latest}"
            case "given":
                return f"given {', '.join(self.given)}"
            case _:
                return "all"

    def allowed(self, tags: Sequence[str]) -> frozenset[str]:
        """Choose among a model's tags, which are in order of arrival."""
        match self.kind:
            case "latest":
                return frozenset(tags[-self.latest :])
            case "given":
                return frozenset(tags) & frozenset(self.given)
            case _:
                return frozenset(tags)


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """Something that happened to a model's traffic: when (UNIX seconds), what, who did it, and why."""

    at: float
    text: str
    who: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """Everything that was said about one model; nothing at all by default.

    Attributes:
        pins: digests of artifacts that stay in memory.
        unloaded: digests of artifacts that an operator took out of memory, and that stay out.
        versions: None for what the settings say.
        notes: the newest last, a bounded number.
    """

    split: Split | None = None
    shadow: Shadow | None = None
    pins: tuple[str, ...] = ()
    unloaded: tuple[str, ...] = ()
    versions: VersionPolicy | None = None
    notes: tuple[Note, ...] = ()

    @property
    def needed(self) -> frozenset[str]:
        """Return the digests of artifacts that have to be in memory for this."""
        arms = self.split.arms if self.split else ()
        return frozenset((*self.pins, *(arm.digest for arm in arms), *((self.shadow.digest,) if self.shadow else ())))


NOTHING_SAID = Traffic()


def pick(split: Split, key: str, draw: float) -> Arm | None:
    """Choose the arm of a request; None for the default version.

    A caller that is in an arm stays in it while the arm grows: arms take the low buckets, in order.

    Args:
        key: of the caller; "" where it has none.
        draw: a number in [0, 1), for a request without a key.
    """
    bucket = _bucket(split.salt, key) if key else int(draw * _BUCKETS)
    end = 0.0
    for arm in split.arms:
        end += arm.percent * (_BUCKETS / 100)
        if bucket < round(end):
            return arm
    return None


def parameter_of(sticky: str) -> str:
    """Return the name of the request parameter that keeps a caller with a version; "" where it is something else."""
    return sticky.removeprefix("parameter:") if sticky.startswith("parameter:") else ""


def check_split(split: Split) -> None:
    """
    Raises:
        InvalidInput: weights, a key or steps that make no sense.
    """
    if not 1 <= len(split.arms) <= MAX_ARMS:
        raise InvalidInput(f"arms: {len(split.arms)} versions, expected 1 to {MAX_ARMS}", field="arms")
    for arm in split.arms:
        if not 0 < arm.percent <= 100:
            raise InvalidInput(f"arms: {arm.name}={arm.percent:g} is not a percentage above 0, up to 100", field="arms")
    total = sum(arm.percent for arm in split.arms)
    if total > 100:
        raise InvalidInput(f"arms: the weights add up to {total:g}%, more than 100%", field="arms")
    if len({arm.digest for arm in split.arms}) != len(split.arms):
        raise InvalidInput("arms: the same version is named twice", field="arms")
    if split.sticky not in ("", "tenant", "header") and not _PARAMETER.fullmatch(split.sticky):
        text = f"sticky: {split.sticky[:80]!r} is not tenant, header or parameter:NAME"
        raise InvalidInput(text, field="sticky")
    if split.steps and len(split.arms) != 1:
        raise InvalidInput("steps: only a split with one version goes on by steps", field="steps")
    rising = all(low < high for low, high in zip(split.steps, split.steps[1:], strict=False))
    if split.steps and not (split.steps[0] > 0 and split.steps[-1] <= 100 and rising):
        raise InvalidInput("steps: expected rising percentages above 0, up to 100, such as 5,25,50,100", field="steps")
    _check_gate(split.gate)


def check_versions(versions: VersionPolicy) -> None:
    """
    Raises:
        InvalidInput: a number or a list that makes no sense.
    """
    if versions.kind == "latest" and versions.latest < 1:
        raise InvalidInput(f"latest: {versions.latest} is not a number of versions", field="latest")
    if versions.kind == "given" and not versions.given:
        raise InvalidInput("given: name at least one version", field="given")


def in_place_of(before: Split, after: Split | None) -> Callable[[Traffic], Traffic]:
    """Replace a split that is still as it was when somebody decided about it.

    Raises:
        Conflict: from what is returned, where it is another one by then.
    """

    def change(said: Traffic) -> Traffic:
        if said.split != before:
            raise Conflict("the split was changed meanwhile; look at it again")
        return replace(said, split=after)

    return change


def _check_gate(gate: CanaryGate) -> None:
    for name in ("alpha", "max_error_rate", "max_slow_rate", "max_disagreement"):
        value = getattr(gate, name)
        if not 0 < value < 1:
            raise InvalidInput(f"gate.{name}: {value:g} is not between 0 and 1", field=f"gate.{name}")
    for name in ("slow_s", "bake_s"):
        value = getattr(gate, name)
        if not 0 <= value <= 365 * 86400:
            raise InvalidInput(f"gate.{name}: {value:g} is not a number of seconds", field=f"gate.{name}")
    if gate.min_requests < 0:
        raise InvalidInput(f"gate.min_requests: {gate.min_requests} is negative", field="gate.min_requests")


def _bucket(salt: str, key: str) -> int:
    digest = blake2b(f"{salt}\0{key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % _BUCKETS
