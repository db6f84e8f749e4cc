"""Reads the settings of a running core again: what can be taken on is, all of it or nothing, and all is said.

What can be taken on is ``cloud_core.policy.reloading``'s table. Reading and checking come first; what follows them runs
in one turn of the event loop, so that no request sees half of it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import msgspec

from cloud_core.observing.observing import Observing
from cloud_core.policy.reloading import Difference, differences
from cloud_core.serving.settings import version_policies
from cloud_core.serving.texts import TextPlane
from cloud_core.settings import CoreSettings, check
from cloud_core.tenants.accounts import tenant_of
from cloud_core.tenants.tenancy import Tenancy
from cloud_core.traffic.service import TrafficService
from penstock.errors import Conflict, PenstockError
from penstock.process.telemetry import LEVELS, log

_log = logging.getLogger(__name__)


class Reloading:
    """Keeps what the settings are now.

    Attributes:
        settings: as they are in force; of what needs a start, as the core was started with.
    """

    def __init__(
        self,
        settings: CoreSettings,
        read: Callable[[], CoreSettings] | None,
        *,
        tenancy: Tenancy | None,
        texts: TextPlane,
        observing: Observing,
        traffic: TrafficService,
    ) -> None:
        """``read``: reads the settings from where they came from; None where they came from nowhere."""
        self.settings, self._read = settings, read
        self._tenancy, self._texts, self._observing, self._traffic = tenancy, texts, observing, traffic
        self._one_at_a_time = asyncio.Lock()
        # what listeners and lists of models were made for
        self._takes_certificates = tenancy is not None and tenancy.callers.takes_certificates
        self._hides = tenancy is not None and tenancy.callers.hides

    async def reload(self) -> tuple[Difference, ...]:
        """Read the settings again, and take on what can be; say in the log what changed.

        Raises:
            Conflict: there is nothing to read. ConfigError: what was read is no settings; all stays as it was.
        """
        if self._read is None:
            raise Conflict("this core was given its settings by a program, which has to start it again")
        async with self._one_at_a_time:
            try:
                wanted = check(await asyncio.to_thread(self._read))
                version_policies(wanted.serving.traffic)
            except PenstockError as error:
                log(_log, logging.ERROR, "settings not reloaded", kept="what was in force before", error=error.message)
                raise
            found = differences(_tree(self.settings), _tree(wanted), fixed=self._fixed(wanted))
            self._take_on(wanted, has_tenants=any(one.is_live and one.setting.startswith("tenants.") for one in found))
        for one in found:
            level = logging.INFO if one.is_live else logging.WARNING
            log(_log, level, "setting changed", setting=one.setting, before=one.before, after=one.after,
                waits_for_a_restart=not one.is_live)  # fmt: skip
        waiting = sum(not one.is_live for one in found)
        log(_log, logging.INFO, "settings reloaded", applied=len(found) - waiting, waiting_for_a_restart=waiting)
        return found

    def _fixed(self, wanted: CoreSettings) -> tuple[str, ...]:
        """Return what this core cannot take on: whether credentials are asked for is settled when it listens."""
        if self._tenancy is None or not wanted.wants_credentials:
            return ("tenants",)
        takes = any(tenant.certificates for tenant in wanted.tenants)
        hides = any(tenant_of(tenant).models is not None for tenant in wanted.tenants)
        return ("tenants",) if (takes and not self._takes_certificates) or (hides and not self._hides) else ()

    def _take_on(self, wanted: CoreSettings, *, has_tenants: bool) -> None:
        """Change everything in one turn. Nothing here fails: what could was looked at before."""
        before = self.settings
        traffic = msgspec.structs.replace(
            before.serving.traffic,
            **{name: getattr(wanted.serving.traffic, name) for name in ("load_s", "look_s", "max_notes", "versions")},
        )
        if traffic != before.serving.traffic:
            self._traffic.replace(traffic)
        tenants = before.tenants
        if has_tenants and self._tenancy is not None:
            tenants = wanted.tenants
            self._tenancy.replace(tenants)
            self._texts.accounts.replace(tenants)
        if wanted.observing.slo != before.observing.slo:
            self._observing.promise(wanted.observing.slo)
        if wanted.log.level != before.log.level:
            logging.root.setLevel(LEVELS[wanted.log.level])
        replace = msgspec.structs.replace
        serving = replace(
            before.serving,
            drain_s=wanted.serving.drain_s,
            lame_duck_s=wanted.serving.lame_duck_s,
            traffic=traffic,
        )
        self.settings = replace(
            before,
            tenants=tenants,
            serving=serving,
            observing=replace(before.observing, slo=wanted.observing.slo),
            log=replace(before.log, level=wanted.log.level),
        )


def _tree(settings: CoreSettings) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.to_builtins(settings)
    return found
