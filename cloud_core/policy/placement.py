"""Decides which variants are in memory: what to load next, what to unload for it, and when to look again. Pure.

Default versions, and those that an operator pinned or gave traffic to, are held: other versions never push them out.
Others fill what is free, newest push first, and go least recently used first. Nothing that is merely there to fill a
slot ever pushes anything out, so a plan that was carried out leads to an empty plan and not to a swap back.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """Describes a variant that the registry knows.

    Attributes:
        is_default: the default version of a model uses it.
        pushed_at: when a version that uses it was pushed last.
        is_pinned: held like a default version: pinned, an arm of a split, a shadow, or what answers for a default
            version that is not loaded yet.
        fills: may be loaded where there is room, though nobody asked for it.
        is_loaded: in memory now.
        is_busy: requests are in it; it goes after all that are idle.
        last_used_at: of the last request, or of its loading.
        asked_at: when a request came for it while it was not loaded; None when none did.
        retry_at: not before then, after a failure.
        size_bytes: of memory: as measured when it was loaded, or of its weights; 0 for one that runs elsewhere.
        replaces: variants that answer for it until it is loaded; both are in memory for a moment, also where only one
            has room.
    """

    digest: str
    is_default: bool
    pushed_at: float
    is_pinned: bool = False
    fills: bool = True
    is_loaded: bool = False
    is_busy: bool = False
    last_used_at: float = 0.0
    asked_at: float | None = None
    retry_at: float | None = None
    size_bytes: int = 0
    replaces: frozenset[str] = frozenset()

    @property
    def is_held(self) -> bool:
        """Say whether others may not push it out."""
        return self.is_default or self.is_pinned


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadingPlan:
    """Holds one step: unload these, then load that one, then plan again.

    Attributes:
        refused: wanted, but there is no room beside what is held, or at all.
        wake_at: when a failed one may be tried again.
    """

    load: str | None = None
    unload: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    wake_at: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Room:
    """How much may be in memory."""

    slots: int
    size_bytes: float

    def holds(self, variants: Sequence[Candidate]) -> bool:
        return len(variants) <= self.slots and sum(one.size_bytes for one in variants) <= self.size_bytes


def plan_loading(
    candidates: Sequence[Candidate], loaded: Sequence[str], *, max_loaded: int, now: float, max_bytes: int = 0
) -> LoadingPlan:
    """Choose the next step towards what should be in memory.

    Args:
        loaded: digests in memory; those that are no candidate any more go first.
        max_bytes: of all of them together; 0 for no such limit.
    """
    room = _Room(slots=max_loaded, size_bytes=max_bytes or math.inf)
    known = {candidate.digest for candidate in candidates}
    living = [candidate for candidate in candidates if candidate.is_loaded]
    surplus = _surplus(living, room)
    gone = (*(digest for digest in loaded if digest not in known), *(one.digest for one in surplus))
    living = [one for one in living if one not in surplus]
    refused: list[str] = []
    for candidate in sorted((c for c in candidates if _may_load(c, now)), key=_urgency):
        victims = _victims(living, candidate, room)
        if victims is not None:
            unload = (*gone, *(victim.digest for victim in victims))
            return LoadingPlan(load=candidate.digest, unload=unload, refused=tuple(refused))
        if candidate.asked_at is not None or candidate.is_pinned or candidate.size_bytes > room.size_bytes:
            refused.append(candidate.digest)
    retries = [c.retry_at for c in candidates if not c.is_loaded and c.retry_at is not None and c.retry_at > now]
    return LoadingPlan(unload=gone, refused=tuple(refused), wake_at=min(retries, default=None))


def _may_load(candidate: Candidate, now: float) -> bool:
    is_wanted = candidate.fills or candidate.is_held or candidate.asked_at is not None
    return is_wanted and not candidate.is_loaded and (candidate.retry_at is None or candidate.retry_at <= now)


def _urgency(candidate: Candidate) -> tuple[bool, float, bool, float]:
    is_waiting = candidate.asked_at is not None
    return (not is_waiting, candidate.asked_at or 0.0, not candidate.is_held, -candidate.pushed_at)


def _surplus(living: Sequence[Candidate], room: _Room) -> list[Candidate]:
    """Return what goes because there is more than fits: a replacement was loaded, or one proved larger than it said."""
    left = list(living)
    gone: list[Candidate] = []
    for one in sorted((c for c in living if not c.is_held), key=_use):
        if room.holds(left):
            break
        left.remove(one)
        gone.append(one)
    return gone


def _victims(living: Sequence[Candidate], candidate: Candidate, room: _Room) -> list[Candidate] | None:
    """Return what has to go for a candidate; None where it has no right to so much."""
    left = [one for one in living if one.digest not in candidate.replaces]
    if room.holds([*left, candidate]):
        return []
    if candidate.asked_at is None and not candidate.is_held:
        return None
    if candidate.size_bytes > room.size_bytes:
        return None
    victims: list[Candidate] = []
    for one in _in_turn(left, candidate):
        left.remove(one)
        victims.append(one)
        if room.holds([*left, candidate]):
            return victims
    return None


def _in_turn(living: Sequence[Candidate], candidate: Candidate) -> list[Candidate]:
    """Return what a candidate may push out, in order: default versions only for another one that somebody asks for."""
    others = sorted((one for one in living if not one.is_held), key=_use)
    if candidate.is_default and candidate.asked_at is not None:
        return [*others, *sorted((one for one in living if one.is_held and not one.is_pinned), key=_use)]
    return others


def _use(candidate: Candidate) -> tuple[bool, float]:
    return candidate.is_busy, candidate.last_used_at
