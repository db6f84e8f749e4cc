"""Delivers outcome counts to the fleet service: from memory into the durable outbox, and from there up.

Records go up under the instance of their outbox where the service counts by instance; that is known from its answer to
a heartbeat, and nothing is delivered before.

Owns the rhythm, and what happens when the disk or the service refuses: counts wait, in memory up to a bound and in the
outbox up to its own, so that an outage costs nothing but time. What a count means is defined in
``penstock.wire.outcomes``.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence

from edge_agent.reporting.ends import Ends, EndsFile
from edge_agent.reporting.fleet_link import FleetLink
from edge_agent.reporting.outbox import Batch, Outbox
from edge_agent.serving.counts import IntervalCounts, Outcomes
from edge_agent.settings import OutboxSettings
from edge_agent.updates.store import in_thread
from penstock.errors import NewerState, PenstockError, StorageError, Unavailable
from penstock.policy.retry import Backoff
from penstock.process.telemetry import log
from penstock.rpc.pb import fleet_pb2
from penstock.wire.outcomes import NOTHING, OutcomeCounts

_log = logging.getLogger(__name__)
_MAX_PENDING = 256  # intervals held in memory while the disk refuses them; beyond it they are summed per artifact


class Delivery:
    """Moves outcome counts from memory into the outbox, and from there to the fleet service."""

    def __init__(
        self,
        outcomes: Outcomes,
        open_outbox: Callable[[], Outbox],
        link: FleetLink,
        device_id: str,
        settings: OutboxSettings,
        *,
        now: Callable[[], float],
        random: Callable[[], float],
        ends: EndsFile | None = None,
    ) -> None:
        """
        Args:
            ends: learns whether all was flushed when the agent ended; None where nobody asks.
            open_outbox: may raise StorageError, and is then tried again: a full disk must not stop the agent.
            now: the event loop's clock.
            random: uniform in [0, 1).
        """
        self._outcomes, self._open_outbox, self._link = outcomes, open_outbox, link
        self._device_id, self._settings, self._now, self._random = device_id, settings, now, random
        self._ends = ends
        self._backoff = Backoff(base_s=settings.flush_s, max_s=max(settings.flush_s, 60.0))
        self._one_call = asyncio.Lock()  # the outbox takes one at a time
        self._outbox: Outbox | None = None
        self._pending: list[IntervalCounts] = []
        self._failures = 0
        self._retry_at = self._flush_at = 0.0
        self._wake = asyncio.Event()
        self._counts_instances: bool | None = None
        self._renewal: asyncio.Task[None] | None = None
        self.error = ""

    @property
    def queued(self) -> int:
        """Return how many records are on disk, plus the intervals that wait for the disk."""
        return (self._outbox.depth if self._outbox else 0) + len(self._pending)

    @property
    def dropped(self) -> int:
        """Return how many records were given up since the start: too old, or no room."""
        return self._outbox.dropped if self._outbox else 0

    @property
    def instance(self) -> str:
        """Return the name of this data directory; "" before the outbox could be opened."""
        return self._outbox.instance if self._outbox else ""

    @property
    def ends(self) -> Ends:
        """Return how the agents before this one ended."""
        return self._ends.ends if self._ends else Ends()

    def learn(self, *, counts_instances: bool, must_renew: bool = False) -> None:
        """Take what the service said of instances in its answer to a heartbeat.

        Args:
            must_renew: another agent reports with our instance.
        """
        if self._counts_instances is None:
            self._wake.set()
        self._counts_instances = counts_instances
        if must_renew and self._outbox is not None and self._renewal is None:
            self._renewal = asyncio.create_task(self._renew(), name="instance")

    async def run(self) -> None:
        """Flush and deliver until cancelled. What was left before a restart goes first."""
        while True:
            self._wake.clear()  # here, and not before the wait: the service may be back while a delivery fails
            if self._now() >= self._flush_at:  # a link that comes and goes must not wear out the disk
                self._flush_at = self._now() + self._settings.flush_s
                await self.flush()
            if self._counts_instances is not None and self._now() >= self._retry_at:
                await self._deliver_or_back_off()
            with contextlib.suppress(TimeoutError):
                # not wait_for: that of Python 3.11 forgets a stop that comes while it wakes
                async with asyncio.timeout(max(0.0, self._wake_at() - self._now())):
                    await self._wake.wait()

    def retry(self) -> None:
        """Deliver now, because the service answers again, instead of waiting for the back-off to end."""
        self._failures, self._retry_at = 0, 0.0
        self._wake.set()

    def _wake_at(self) -> float:
        is_waiting = self._failures > 0 and self._retry_at > self._now()
        return min(self._flush_at, self._retry_at) if is_waiting else self._flush_at

    async def counted(self, model: str, artifact_digest: str) -> OutcomeCounts:
        """Return all counts of an artifact from before; none when the disk cannot be read."""
        try:
            async with self._one_call:
                outbox = await self._opened()
                return await in_thread(outbox.totals, model, artifact_digest)
        except StorageError as error:
            log(_log, logging.WARNING, "totals unknown", model=model, error=error.message)
            return NOTHING

    async def open(self) -> None:
        """Open the outbox, so that one of a newer release is found before anything is counted.

        Raises:
            NewerState: a newer Penstock wrote the outbox.
        """
        try:
            await self._opened()
        except NewerState:
            raise
        except StorageError as error:
            self._note(error)
        if self._ends is not None:
            await in_thread(self._ends.begin)

    async def flush(self) -> None:
        """Make the counts since the last flush durable; when the disk refuses they stay in memory, bounded."""
        self._pending = bounded([*self._pending, *self._outcomes.drain()], _MAX_PENDING)
        if not self._pending:
            return
        pending, self._pending = self._pending, []
        is_durable = False

        def append(outbox: Outbox) -> None:
            nonlocal is_durable
            outbox.append(pending)
            is_durable = True

        try:
            async with self._one_call:
                await in_thread(append, await self._opened())
                if self._ends is not None:
                    await in_thread(self._ends.begin)  # nothing to do, but where the disk refused it before
        except StorageError as error:
            self._note(error)
        finally:
            if not is_durable:  # refused, or cancelled while another call had the outbox
                self._pending = [*pending, *self._pending]

    async def close(self) -> None:
        """Flush for the last time. Call it when nothing is counted any more."""
        if self._renewal is not None:
            await asyncio.wait([self._renewal])
        await self.flush()
        if self._outbox is not None:
            self._outbox.close()
            self._outbox = None
        if self._ends is not None and not self._pending:
            await in_thread(self._ends.end)

    async def _deliver_or_back_off(self) -> None:
        try:
            await self._deliver()
        except PenstockError as error:
            self._note(error)
            if self._wake.is_set():
                return  # the service answered meanwhile: what failed is tried again at once
            self._failures += 1
            delay_s = self._backoff.delay_s(self._failures - 1, self._random(), retry_after_s=error.retry_after_s)
            self._retry_at = self._now() + delay_s
        else:
            self._failures, self.error = 0, ""

    async def _deliver(self) -> None:
        """Deliver batch by batch until the outbox is empty.

        Raises:
            PenstockError: out of reach, refused, or the disk; what was not acknowledged stays.
        """
        while (batch := await self._batch()).records:
            durable = await self._link.deliver(delivery_request(self._device_id, batch))
            async with self._one_call:
                outbox = await self._opened()
                await in_thread(outbox.acknowledge, batch.instance, durable)
            first = batch.records[0].sequence
            if durable < first:
                raise Unavailable(f"the fleet service keeps nothing: durable up to {durable} of {first}")

    async def _batch(self) -> Batch:
        async with self._one_call:
            outbox = await self._opened()
            if not outbox.depth:
                return Batch(instance="", records=())
            return await in_thread(lambda: outbox.batch(instance=None if self._counts_instances else ""))

    async def _renew(self) -> None:
        try:
            async with self._one_call:
                outbox = await self._opened()
                instance = await in_thread(outbox.renew_instance)
            log(_log, logging.WARNING, "another agent reports under our device id, from a copy of our data directory; "
                "this one counts apart from now on", device=self._device_id, instance=instance)  # fmt: skip
        except StorageError as error:
            self._note(error)  # the service asks again
        finally:
            self._renewal = None

    async def _opened(self) -> Outbox:
        if self._outbox is None:
            self._outbox = await in_thread(self._open_outbox)
        return self._outbox

    def _note(self, error: PenstockError) -> None:
        if error.message != self.error:
            log(_log, logging.WARNING, "outcomes wait", code=error.code, queued=self.queued, error=error.message)
        self.error = error.message


def delivery_request(device_id: str, batch: Batch) -> fleet_pb2.DeliverOutcomesRequest:
    """Build the message that carries records of one instance, ascending by sequence."""
    return fleet_pb2.DeliverOutcomesRequest(
        device_id=device_id,
        instance=batch.instance,
        records=[
            fleet_pb2.OutcomeRecord(
                sequence=record.sequence,
                model=record.interval.model,
                artifact_digest=record.interval.artifact_digest,
                counts=fleet_pb2.OutcomeCounts(**record.interval.counts.columns()),
                started_at=record.interval.started_at,
                ended_at=record.interval.ended_at,
            )
            for record in batch.records
        ],
    )


def bounded(intervals: Sequence[IntervalCounts], limit: int) -> list[IntervalCounts]:
    """Return the intervals, summed per artifact when there are more than ``limit``."""
    if len(intervals) <= limit:
        return list(intervals)
    merged: dict[tuple[str, str], IntervalCounts] = {}
    for interval in intervals:
        key = (interval.model, interval.artifact_digest)
        merged[key] = _sum(merged[key], interval) if key in merged else interval
    return list(merged.values())


def _sum(first: IntervalCounts, second: IntervalCounts) -> IntervalCounts:
    return IntervalCounts(
        model=first.model,
        artifact_digest=first.artifact_digest,
        counts=first.counts + second.counts,
        started_at=min(first.started_at, second.started_at),
        ended_at=max(first.ended_at, second.ended_at),
    )
