"""Decides how much a tenant may send: requests, rows, bytes, at once and on a day, and how urgently.

Values and plain functions of the time. Owns no clock and no counter: the shell keeps the state that it is handed back.
Tokens of language models are ``penstock.policy.token_budget``'s.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from penstock.errors import InvalidInput, PenstockError, QuotaExceeded, TooLarge
from penstock.policy.batching import DEFAULT_LEVEL
from penstock.policy.token_bucket import BucketState, TokenBucket
from penstock.policy.token_budget import Moment

_DAY_S = 86_400


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantLimits:
    """What one tenant may do. None and 0 are no limit.

    Attributes:
        requests: admitted, by their rate.
        rows: of requests that were decoded, by their rate.
        bytes: of bodies, by their rate.
        max_inflight: requests that are admitted and not yet answered.
        requests_per_day: a day begins at midnight UTC.
        rows_per_day: rows of a day.
        best_priority: a request that asks for a better one gets this one; 1 is the highest there is.
    """

    requests: TokenBucket | None = None
    rows: TokenBucket | None = None
    bytes: TokenBucket | None = None
    max_inflight: int = 0
    requests_per_day: int = 0
    rows_per_day: int = 0
    best_priority: int = 1

    @property
    def has_days(self) -> bool:
        """Say whether what was spent on a day has to be known."""
        return bool(self.requests_per_day or self.rows_per_day)


UNLIMITED = TenantLimits()


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantState:
    """What a tenant has left of its rates, and has spent of its day.

    Attributes:
        day: its number since 1970, in UTC.
    """

    requests: BucketState | None
    rows: BucketState | None
    bytes: BucketState | None
    inflight: int = 0
    day: int = 0
    day_requests: int = 0
    day_rows: int = 0


def opened(limits: TenantLimits, now: float, *, day: int = 0, requests: int = 0, rows: int = 0) -> TenantState:
    """Open a tenant's account with full buckets, and what it has spent of a day already."""
    return TenantState(
        requests=limits.requests.full(now) if limits.requests else None,
        rows=limits.rows.full(now) if limits.rows else None,
        bytes=limits.bytes.full(now) if limits.bytes else None,
        day=day,
        day_requests=requests,
        day_rows=rows,
    )


def begin(limits: TenantLimits, state: TenantState, size_bytes: int | None, moment: Moment, name: str) -> TenantState:
    """Let one request in, all limits or none taken.

    Args:
        size_bytes: of its body; None where nobody knows before it is read.
        name: the tenant's, for refusals.

    Raises:
        QuotaExceeded: over a limit; says when there is room. TooLarge: more bytes than could pass at any time.
        InvalidInput: a body of unknown size, where bytes are limited.
    """
    state = _on_day(state, moment)
    if limits.max_inflight and state.inflight >= limits.max_inflight:
        raise QuotaExceeded(
            f"tenant {name!r} has {state.inflight} requests in flight, the most that it may have",
            limit=limits.max_inflight,
            reset_s=1.0,  # nobody knows when one of them ends
        )
    _check_day(limits.requests_per_day, state.day_requests, 1, "requests", state, moment, name)
    requests = _taken(limits.requests, state.requests, 1, moment.now, "requests", name)
    sizes = state.bytes
    if limits.bytes is not None:
        if size_bytes is None:
            raise InvalidInput(
                f"the bytes of tenant {name!r} are counted before they are read: send Content-Length, and no "
                "compressed body",
                field="Content-Length",
            )
        sizes = _taken(limits.bytes, state.bytes, size_bytes, moment.now, "bytes", name)
    return replace(
        state, requests=requests, bytes=sizes, inflight=state.inflight + 1, day_requests=state.day_requests + 1
    )


def take_rows(limits: TenantLimits, state: TenantState, rows: int, moment: Moment, name: str) -> TenantState:
    """Take the rows of a request that was let in.

    Raises:
        QuotaExceeded: over a limit; says when the rows would be there.
        InvalidInput: more rows in one request than could pass at any time.
    """
    state = _on_day(state, moment)
    _check_day(limits.rows_per_day, state.day_rows, rows, "rows", state, moment, name)
    taken = _taken(limits.rows, state.rows, rows, moment.now, "rows", name)
    return replace(state, rows=taken, day_rows=state.day_rows + rows)


def end(state: TenantState) -> TenantState:
    """Note that a request is over."""
    return replace(state, inflight=max(0, state.inflight - 1))


def priority_within(limits: TenantLimits, priority: int) -> int:
    """Return the priority that a request gets: what it asks for, or the best that its tenant may have.

    0 is the default, which ranks as ``DEFAULT_LEVEL`` does.
    """
    level = priority or DEFAULT_LEVEL
    return priority if level >= limits.best_priority else limits.best_priority


def _taken(
    bucket: TokenBucket | None, state: BucketState | None, n: int, now: float, what: str, name: str
) -> BucketState | None:
    if bucket is None or state is None:
        return state
    after, wait_s = bucket.take(state, n, now)
    if wait_s == 0.0:
        return after
    if math.isinf(wait_s):
        raise _never(n, int(bucket.burst), what, name)
    raise QuotaExceeded(
        f"tenant {name!r} is over its rate of {bucket.rate:g} {what} a second; try again in {wait_s:.2f} s",
        limit=int(bucket.burst),
        remaining=max(0, int(after.tokens)),
        reset_s=wait_s,
    )


def _never(n: int, burst: int, what: str, name: str) -> PenstockError:
    """Make the refusal of more in one request than a full bucket holds: waiting would not help."""
    said = f"{n} {what} in one request, but tenant {name!r} may send {burst} at once"
    return TooLarge(said, limit_bytes=burst) if what == "bytes" else InvalidInput(f"inputs: {said}", field="inputs")


def _check_day(limit: int, spent: int, more: int, what: str, state: TenantState, moment: Moment, name: str) -> None:
    if not limit or spent + more <= limit:
        return
    if more > limit:
        raise InvalidInput(f"{more} {what} in one request, but tenant {name!r} has {limit} a day", field="inputs")
    reset_s = max(0.0, (state.day + 1) * _DAY_S - moment.at)
    raise QuotaExceeded(
        f"tenant {name!r} has {max(0, limit - spent)} of its {limit} {what} a day left; the next day begins at "
        f"midnight UTC, in {reset_s:.0f} s",
        limit=limit,
        remaining=max(0, limit - spent),
        reset_s=reset_s,
    )


def _on_day(state: TenantState, moment: Moment) -> TenantState:
    """Begin a new day; a clock that steps back stays in the day that has begun."""
    return replace(state, day=moment.day, day_requests=0, day_rows=0) if moment.day > state.day else state
