"""Reads an identity provider's public keys, from a file or an address: at the start, from time to time, and when a
token names one that is not known. Never on a request's way; what cannot be read leaves the keys that are here.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

from cloud_core.policy.claims import next_read_at
from cloud_core.tenants.settings import OidcSettings
from penstock.errors import PenstockError, StorageError, Unavailable
from penstock.process.telemetry import log
from penstock.rest.connection import ask

_log = logging.getLogger(__name__)
MAX_BYTES = 1024 * 1024
_TIMEOUT_S = 10.0


class KeyReader:
    """Hands what it reads to ``take``, which raises where it is no set of keys.

    Attributes:
        has_read: whether there were keys at any time.
    """

    def __init__(self, settings: OidcSettings, take: Callable[[bytes], None], now: Callable[[], float]) -> None:
        self._settings, self._take, self._now = settings, take, now
        self._read_at: float | None = None
        self._is_asked = False
        self._wake = asyncio.Event()
        self._told = ""
        self.has_read = False

    def ask(self) -> bool:
        """Want the keys again; say whether they are read soon, or were read just now and would be the same."""
        if self._read_at is not None and self._now() < self._read_at + self._settings.min_refresh_s:
            return False
        self._is_asked = True
        self._wake.set()
        return True

    async def run(self) -> None:
        """Read when it is time, until cancelled."""
        while True:
            self._wake.clear()
            due_at = next_read_at(
                read_at=self._read_at,
                is_asked=self._is_asked or not self.has_read,
                refresh_s=self._settings.refresh_s,
                min_refresh_s=self._settings.min_refresh_s,
            )
            if due_at <= self._now():
                await self._read()
                continue
            try:
                async with asyncio.timeout(due_at - self._now()):
                    await self._wake.wait()
            except TimeoutError:
                pass

    async def _read(self) -> None:
        try:
            data = await asyncio.to_thread(_bytes_of, self._settings.jwks)
            self._take(data)
        except PenstockError as error:
            if error.message != self._told:
                log(_log, logging.WARNING, "keys of the identity provider not read", error=error.message)
            self._told = error.message
        else:
            self.has_read, self._told = True, ""
        self._read_at, self._is_asked = self._now(), False


def _bytes_of(place: str) -> bytes:
    """
    Raises:
        Unavailable: nobody answers, or with something else than a document. StorageError: the file cannot be read.
    """
    if place.startswith(("https://", "http://")):
        answer = ask(place, "GET", "", timeout_s=_TIMEOUT_S)
        if answer.status != 200:
            raise Unavailable(f"auth.oidc.jwks: {place} answers {answer.status}")
        data = answer.body
    else:
        try:
            with Path(place).open("rb") as file:
                data = file.read(MAX_BYTES + 1)
        except OSError as error:
            raise StorageError(f"auth.oidc.jwks: {place}: {error.strerror}") from error
    if len(data) > MAX_BYTES:
        raise Unavailable(f"auth.oidc.jwks: {place} has more than {MAX_BYTES} bytes")
    return data
