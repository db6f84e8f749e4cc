"""Looks at the files of TLS from time to time, so that a renewed certificate needs no restart."""

from __future__ import annotations

import asyncio
import logging

from penstock.errors import ConfigError
from penstock.process.telemetry import log
from penstock.wire.server_tls import ServerCertificates

_log = logging.getLogger(__name__)


async def watch_certificates(certificates: ServerCertificates, *, every_s: float) -> None:
    """Take what has changed, until cancelled. Files that are wrong are told once, and those before stay in service."""
    told = ""
    while True:
        await asyncio.sleep(every_s)
        try:
            has_changed = await asyncio.to_thread(certificates.reload)
        except ConfigError as error:
            if error.message != told:
                log(_log, logging.WARNING, "certificates not renewed", error=error.message)
            told = error.message
        else:
            told = ""
            if has_changed:
                log(_log, logging.INFO, "certificates renewed", generation=certificates.generation)
