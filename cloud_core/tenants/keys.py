"""Keys that callers hold: made, listed and revoked while the core runs, and known by nothing but their hash.

A key is 256 random bits, so that one round of SHA-256 is enough: there is nothing to guess that a slower hash would
protect, and a request would pay for it (adr/0072). What a key may do is ``cloud_core.policy.admission``'s.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import cast

from cloud_core.policy.admission import Role, Tenant, hashed
from cloud_core.state import Database, Transaction, api_keys, uncancelled
from cloud_core.state.api_keys import KeyRow
from penstock.errors import Conflict, NotFound, StorageError
from penstock.process.telemetry import log

_log = logging.getLogger(__name__)
_PREFIX = "penstock"
_ID_BYTES, _SECRET_BYTES = 4, 32
_DAY_S = 86_400
Work = Callable[[Transaction], None]
Act = Callable[[str, str, Work], Awaitable[None]]
"""Does some work in a transaction, and records in it what is done (``core key create``), and to what."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A key that is to be made.

    Attributes:
        device_id: the only device that it may report for; "" for any.
        note: what it is for.
        days: that it is valid for; None until it is revoked.
        by: who makes it.
    """

    tenant: str
    role: Role
    device_id: str = ""
    note: str = ""
    days: float | None = None
    by: str = ""


class _Held:
    """A key in memory, with when it was last used."""

    __slots__ = ("row", "tenant", "used_at")

    def __init__(self, row: KeyRow, tenant: Tenant) -> None:
        self.row, self.tenant, self.used_at = row, tenant, row.last_used_at


class ApiKeys:
    """All keys; everything here runs on the event loop's thread."""

    def __init__(
        self,
        database: Database,
        *,
        wall_clock: Callable[[], float],
        max_keys: int,
        known: Mapping[str, Tenant] | None = None,
    ) -> None:
        """Read what there is.

        Args:
            wall_clock: UNIX seconds.
            known: tenants of the settings by name, whose models and device a key has, too.
        """
        self._database, self._wall_clock, self._max_keys = database, wall_clock, max_keys
        self._known = known or {}
        self._tenants: frozenset[str] | None = None
        self._held = {bytes.fromhex(row.hash): self._hold(row) for row in database.run_now(api_keys.read)}

    def __len__(self) -> int:
        return len(self._held)

    @property
    def tenants(self) -> frozenset[str]:
        """Name those that have one."""
        if self._tenants is None:
            self._tenants = frozenset(held.tenant.name for held in self._held.values())
        return self._tenants

    def know(self, known: Mapping[str, Tenant]) -> None:
        """Say which tenants the settings have from now on."""
        self._known = known
        for held in self._held.values():
            held.tenant = self._hold(held.row).tenant

    def tenant_of(self, key: bytes) -> Tenant | None:
        """Return whose key has this hash; None where nobody's has, or not any more."""
        held = self._held.get(key)
        if held is None:
            return None
        now = self._wall_clock()
        if held.row.expires_at is not None and held.row.expires_at <= now:
            return None
        held.used_at = now
        return held.tenant

    def rows(self) -> tuple[KeyRow, ...]:
        """List all keys, oldest first, with when each was last used."""
        return tuple(replace(held.row, last_used_at=held.used_at) for held in self._held.values())

    @uncancelled
    async def create(self, wanted: Wanted, act: Act) -> tuple[KeyRow, str]:
        """Make a key; return what is kept of it, and the key itself, which nobody can be shown again.

        Raises:
            Conflict: there are as many as may be.
        """
        if len(self._held) >= self._max_keys:
            raise Conflict(f"there are {len(self._held)} keys, the most there may be (auth.max_keys); revoke some")
        now, id = self._wall_clock(), self._free_id()
        key = f"{_PREFIX}_{id}_{secrets.token_urlsafe(_SECRET_BYTES)}"
        row = KeyRow(
            id=id,
            hash=hashed(key).hex(),
            tenant=wanted.tenant,
            role=wanted.role,
            device_id=wanted.device_id,
            note=wanted.note,
            created_at=now,
            created_by=wanted.by,
            expires_at=None if wanted.days is None else now + wanted.days * _DAY_S,
            last_used_at=None,
        )

        await act("core key create", f"{row.id} for {row.tenant} as {row.role}", partial(api_keys.add, row=row))
        self._held[hashed(key)] = self._hold(row)
        self._tenants = None
        return row, key

    @uncancelled
    async def revoke(self, id: str, act: Act) -> KeyRow:
        """Forget a key: from now on nobody is known by it.

        Raises:
            NotFound: no key has this id.
        """
        found = next((key for key, held in self._held.items() if held.row.id == id), None)
        if found is None:
            raise NotFound(f"no key {id[:40]!r}; 'penstock core key list' shows them")
        self._tenants = None
        held = self._held.pop(found)  # before the disk: from now on, whatever happens
        try:
            await act("core key revoke", f"{id} of {held.row.tenant}", partial(api_keys.drop, id=id))
        except StorageError:
            self._held[found] = held  # it would be back after a restart: nobody is told otherwise
            raise
        return held.row

    async def flush(self) -> None:
        """Write when keys were last used. A disk that says no is told, and tried again the next time."""
        used = {h.row.id: h.used_at for h in self._held.values() if h.used_at and h.used_at != h.row.last_used_at}
        if not used:
            return
        try:
            await self._database.run(partial(api_keys.used, at=used))
        except StorageError as error:
            log(_log, logging.WARNING, "when keys were last used is not written", error=error.message)
            return
        for held in self._held.values():
            if held.row.id in used:
                held.row = replace(held.row, last_used_at=used[held.row.id])

    def _hold(self, row: KeyRow) -> _Held:
        whose = self._known.get(row.tenant) or Tenant(name=row.tenant)
        device_id = row.device_id or whose.device_id
        return _Held(row, replace(whose, role=cast(Role, row.role), device_id=device_id))

    def _free_id(self) -> str:
        taken = {held.row.id for held in self._held.values()}
        while (id := secrets.token_hex(_ID_BYTES)) in taken:
            pass
        return id
