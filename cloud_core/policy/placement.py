"""Decides which variants are in memory: what to load next, what to unload for it, and when to look again. Pure.

Default versions are pinned: other versions never push them out. Others fill what is free, newest push first, and go
least recently used first. Nothing that is merely there to fill a slot ever pushes anything out, so a plan that was
carried out leads to an empty plan and not to a swap back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """Describes a variant that the registry knows.

    Attributes:
        is_default: the default version of a model uses it.
        pushed_at: when a version that uses it was pushed last.
        is_loaded: in memory now.
        is_busy: requests are in it; it goes after all that are idle.
        last_used_at: of the last request, or of its loading.
        asked_at: when a request came for it while it was not loaded; None when none did.
        retry_at: not before then, after a failure.
    """

    digest: str
    is_default: bool
    pushed_at: float
    is_loaded: bool = False
    is_busy: bool = False
    last_used_at: float = 0.0
    asked_at: float | None = None
    retry_at: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadingPlan:
    """Holds one step: unload these, then load that one, then plan again.

    Attributes:
        refused: asked for, but every slot is pinned.
        wake_at: when a failed one may be tried again.
    """

    load: str | None = None
    unload: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    wake_at: float | None = None


def plan_loading(candidates: Sequence[Candidate], loaded: Sequence[str], *, max_loaded: int, now: float) -> LoadingPlan:
    """Choose the next step towards what should be in memory.

    Args:
        loaded: digests in memory; those that are no candidate any more go first.
    """
    known = {candidate.digest for candidate in candidates}
    gone = tuple(digest for digest in loaded if digest not in known)
    living = [candidate for candidate in candidates if candidate.is_loaded]
    refused: list[str] = []
    for candidate in sorted((c for c in candidates if _may_load(c, now)), key=_urgency):
        if len(living) < max_loaded:
            return LoadingPlan(load=candidate.digest, unload=gone, refused=tuple(refused))
        victim = _victim(living, candidate)
        if victim is not None:
            return LoadingPlan(load=candidate.digest, unload=(*gone, victim.digest), refused=tuple(refused))
        if candidate.asked_at is not None:
            refused.append(candidate.digest)
    retries = [c.retry_at for c in candidates if not c.is_loaded and c.retry_at is not None and c.retry_at > now]
    return LoadingPlan(unload=gone, refused=tuple(refused), wake_at=min(retries, default=None))


def _may_load(candidate: Candidate, now: float) -> bool:
    return not candidate.is_loaded and (candidate.retry_at is None or candidate.retry_at <= now)


def _urgency(candidate: Candidate) -> tuple[bool, float, bool, float]:
    is_waiting = candidate.asked_at is not None
    return (not is_waiting, candidate.asked_at or 0.0, not candidate.is_default, -candidate.pushed_at)


def _victim(living: Sequence[Candidate], candidate: Candidate) -> Candidate | None:
    if candidate.asked_at is None and not candidate.is_default:
        return None
    unpinned = [c for c in living if not c.is_default]
    if unpinned:
        return min(unpinned, key=_use)
    if candidate.is_default and candidate.asked_at is not None:
        return min(living, key=_use, default=None)
    return None


def _use(candidate: Candidate) -> tuple[bool, float]:
    return candidate.is_busy, candidate.last_used_at
