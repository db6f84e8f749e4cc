"""What tenants used of which models: an observer that adds it up in memory, and writes it from time to time, by day.

What a core that is killed had not written (``serving.spending_flush_s``) is the tenant's gain. Owns no price.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

from cloud_core.observing.finished import Finished
from cloud_core.state import Database, usage
from cloud_core.state.usage import UsageRow, Used
from cloud_core.tenants.settings import UsageSettings
from penstock.errors import InvalidInput, StorageError
from penstock.process.telemetry import log

_log = logging.getLogger(__name__)
_DAY_S = 86_400
OTHERS = "(others)"
MAX_FOUND = 20_000

Pair = tuple[str, str]
"""Tenant and model."""


class Usage:
    """Everything here runs on the event loop's thread.

    Attributes:
        since_start: what was used since the core began, by tenant and model, for metrics.
    """

    def __init__(self, database: Database, settings: UsageSettings, *, wall_clock: Callable[[], float]) -> None:
        """Go on with what was used today when a core ran here before."""
        self._database, self._settings, self._wall_clock = database, settings, wall_clock
        self._day = self.today()
        self._used = database.run_now(partial(usage.read_day, day=self._day))
        self._changed: dict[int, dict[Pair, Used]] = {}
        self.since_start: dict[Pair, Used] = {}

    def today(self) -> int:
        """Return the number of the day since 1970, in UTC."""
        return int(self._wall_clock() // _DAY_S)

    def finished(self, request: Finished) -> None:
        """Add a request up. What was refused before it was looked at used nothing."""
        if not request.is_admitted:
            return
        day = self.today()
        if day > self._day:  # a clock that steps back stays in the day that has begun
            self._day, self._used = day, {}
        more = _used(request)
        pair = self._pair(self._used, request.tenant, request.model)
        self._used[pair] = after = added(self._used.get(pair), more)
        self._changed.setdefault(self._day, {})[pair] = after
        pair = self._pair(self.since_start, request.tenant, request.model)
        self.since_start[pair] = added(self.since_start.get(pair), more)

    def of_today(self) -> dict[str, Used]:
        """Return what tenants have used of the day, all models together."""
        found: dict[str, Used] = {}
        for (tenant, _), one in self._used.items():
            found[tenant] = added(found.get(tenant), one)
        return found

    async def flush(self) -> None:
        """Write what changed since the last time. A disk that says no is told, and tried again the next time."""
        changed, self._changed = self._changed, {}
        for day, used in changed.items():
            oldest = self._day - self._settings.keep_days + 1
            try:
                await self._database.run(partial(usage.write, day=day, used=used, oldest_day=oldest))
            except StorageError as error:
                log(_log, logging.WARNING, "what tenants have used is not written", error=error.message)
                self._changed[day] = {**used, **self._changed.get(day, {})}

    async def find(self, *, since: int, until: int, tenant: str, is_by_day: bool) -> tuple[UsageRow, ...]:
        """Return what was used from one day to another, up to now.

        Raises:
            InvalidInput: more rows than are shown at once.
        """
        await self.flush()
        ask = partial(usage.find, since=since, until=until, tenant=tenant, is_by_day=is_by_day, limit=MAX_FOUND + 1)
        found = await self._database.run(ask)
        if len(found) > MAX_FOUND:
            raise InvalidInput(
                f"more than {MAX_FOUND} rows; ask for fewer days, for one tenant, or for days together", field="since"
            )
        return found

    def _pair(self, known: Mapping[Pair, Used], tenant: str, model: str) -> Pair:
        if (tenant, model) in known or len(known) < self._settings.max_pairs:
            return tenant, model
        return tenant, OTHERS


def _used(request: Finished) -> Used:
    device_s = 0.0
    for run in request.runs:
        if run.batch is not None and run.batch.rows:
            device_s += run.batch.took_s * run.rows / run.batch.rows
    return Used(
        requests=1,
        failed=int(request.code != "ok"),
        rows=request.rows,
        bytes=request.request_bytes,
        tokens=request.prompt_tokens + request.answer_tokens,
        device_s=device_s,
    )


def added(one: Used | None, more: Used) -> Used:
    """Return both together."""
    if one is None:
        return more
    return replace(one, **{name: getattr(one, name) + getattr(more, name) for name in Used.__slots__})
