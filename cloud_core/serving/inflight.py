"""What admitted requests take of the server: places and bytes, in all, by model and by tenant, from head to answer.

How much one of several models or tenants may have is ``penstock.policy.fair_shares``' decision and ``memory``'s; while
less than half of everything is taken, nobody is looked at. When to come back is said by the queues, which know how fast
they are served.
"""

from __future__ import annotations

from collections.abc import Mapping

from cloud_core.serving.counters import Measures
from cloud_core.serving.router import Served
from cloud_core.serving.served_text import ServedText
from cloud_core.settings import ServingSettings
from cloud_core.tenants.callers import Callers
from penstock.errors import QueueFull
from penstock.policy.fair_shares import fits_beside
from penstock.policy.memory import MemoryLimit
from penstock.process.machine import usable_memory_bytes

_MEMORY_PARTS = 4  # one for requests; the rest is for models, and for what their runs and answers take


class _Held:
    """What one tenant's requests take."""

    __slots__ = ("requests", "size_bytes")

    def __init__(self) -> None:
        self.requests = self.size_bytes = 0


class Inflight:
    """The places and bytes of a server. Everything here happens on the event loop's thread."""

    def __init__(
        self,
        measures: Measures,
        settings: ServingSettings,
        served: Mapping[str, Served | ServedText],
        callers: Callers | None,
    ) -> None:
        """
        Args:
            served: what is in memory.
            callers: whose tenants share; None where nobody tells them apart.
        """
        self._measures, self._served, self._callers = measures, served, callers
        self._max_requests, self._retry_after_s = settings.max_inflight_requests, settings.retry_after_s
        self._memory = MemoryLimit(
            max_bytes=settings.max_inflight_bytes or usable_memory_bytes() // _MEMORY_PARTS,
            setting="serving.max_inflight_bytes",
        )
        self._tenants: dict[str, _Held] = {}

    def check_full(self) -> None:
        """
        Raises:
            QueueFull: every place is taken.
        """
        if self._measures.inflight >= self._max_requests:
            raise QueueFull(
                f"{self._measures.inflight} requests are in flight, the limit (serving.max_inflight_requests)",
                retry_after_s=self.retry_after_s(),
            )

    def check(self, served: Served | ServedText, tenant: str, asked: int, *, holds: int = -1) -> None:
        """Look whether a request finds a place, and its bytes room.

        Args:
            holds: bytes that it has already; -1 for one that is not in yet.

        Raises:
            QueueFull: its model or its tenant has as many places as others left free. MemoryFull: the same of bytes.
        """
        measures, limit = self._measures, self._max_requests
        if holds < 0 and 2 * (measures.inflight + 1) > limit:
            mine = {"this model": served.inflight} if len(self._served) > 1 else {}
            if self._are_several_tenants:
                mine["this tenant"] = self._of(tenant).requests
            for whose, places in mine.items():
                if not fits_beside(places, 1, held=measures.inflight, limit=limit):
                    raise QueueFull(
                        f"{places} requests of {whose} are in flight, as many as others leave free of {limit} "
                        "(serving.max_inflight_requests)",
                        retry_after_s=self.retry_after_s(served),
                    )
        but = max(0, holds)
        held = measures.inflight_bytes - but
        if 2 * (held + asked) <= self._memory.max_bytes:
            return
        refusal = self._memory.refusal(
            asked,
            held=held,
            held_by_model=served.inflight_bytes - but,
            held_by_tenant=self._of(tenant).size_bytes - but if self._are_several_tenants else 0,
        )
        if refusal is not None:
            refusal.retry_after_s = self.retry_after_s(served)
            raise refusal

    def enter(self, served: Served | ServedText, tenant: str, size_bytes: int) -> None:
        """Note that a request is in."""
        self._measures.inflight += 1
        served.enter()
        if self._callers is not None:
            self._tenants.setdefault(tenant, _Held()).requests += 1
        self.hold(served, tenant, size_bytes)

    def hold(self, served: Served | ServedText, tenant: str, size_bytes: int) -> None:
        """Note that it takes more bytes, or less."""
        self._measures.inflight_bytes += size_bytes
        served.inflight_bytes += size_bytes
        if self._callers is not None:
            self._tenants[tenant].size_bytes += size_bytes

    def leave(self, served: Served | ServedText, tenant: str, size_bytes: int) -> None:
        """Note that it is over, and gives back so many bytes."""
        self.hold(served, tenant, -size_bytes)
        self._measures.inflight -= 1
        served.leave()
        if self._callers is not None:
            held = self._tenants[tenant]
            held.requests -= 1
            if not held.requests:
                del self._tenants[tenant]

    def retry_after_s(self, served: Served | ServedText | None = None) -> float:
        """Say when to come back: when what waits for a model, or for the busiest one, should be done.

        ``serving.retry_after_s`` where nothing waits at all, and it is bodies on their way that take the room.
        """
        asked = [served] if isinstance(served, Served) and served.inflight else self._served.values()
        return max([one.drained_after_s() for one in asked if isinstance(one, Served)], default=0.0) or (
            self._retry_after_s
        )

    @property
    def _are_several_tenants(self) -> bool:
        return self._callers is not None and self._callers.are_several()

    def _of(self, tenant: str) -> _Held:
        return self._tenants.get(tenant) or _Held()
