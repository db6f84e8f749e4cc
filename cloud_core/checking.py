"""Looks at what a core needs, from outside: settings, directory, disk, ports, TLS, trust, database, blobs.

Changes nothing and takes no lock, so that it may run beside the core, or before its first start.
"""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cloud_core.backups import needed_blobs
from cloud_core.cluster.opening import DATABASE_FILE, UNFINISHED
from cloud_core.settings import CoreSettings
from cloud_core.state import Database, catalog
from cloud_core.state.copies import opened_copy
from cloud_core.state.upgrades import SCHEMA_VERSION, version_of
from penstock.artifact.blobs import BlobStore
from penstock.errors import PenstockError, newer_state
from penstock.rest.connection import ask
from penstock.signing import trust
from penstock.wire.server_tls import ServerCertificates
from penstock.wording import size

State = Literal["ok", "warning", "failed"]
_LOW_BYTES, _FULL_BYTES = 2 * 1024**3, 64 * 1024**2
_MAX_NAMED = 5
_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one check found.

    Attributes:
        found: what is so, and what to do about it where it is wrong.
    """

    check: str
    state: State
    found: str


_Found = tuple[State, str]


def examine(settings: CoreSettings, environment: Mapping[str, str], *, is_deep: bool) -> list[Finding]:
    """Look at everything, in the order in which a core needs it; never raises.

    Args:
        is_deep: hash every blob, too; reads all of the registry.
    """
    data_dir = Path(settings.data_dir)
    checks: Sequence[tuple[str, Callable[[], _Found]]] = (
        ("data directory", lambda: _data_dir(data_dir)),
        ("disk space", lambda: _space(data_dir)),
        ("http port", lambda: _port(settings.http.host, settings.http.port)),
        ("grpc port", lambda: _port(settings.grpc.host, settings.grpc.port)),
        ("certificates", lambda: _certificates(settings)),
        ("trust", lambda: _trust(settings, environment)),
        ("database", lambda: _database(settings)),
        ("blobs", lambda: _blobs(settings, is_deep=is_deep)),
    )
    found = [Finding(check="settings", state="ok", found=_who(settings))]
    for name, check in checks:
        try:
            state, words = check()
        except (PenstockError, OSError) as error:
            state = "failed"
            words = error.message if isinstance(error, PenstockError) else f"{error.filename or ''}: {error.strerror}"
        found.append(Finding(check=name, state=state, found=words))
    return found


def _who(settings: CoreSettings) -> str:
    if settings.wants_credentials:
        return f"{len(settings.tenants)} tenants in the settings; callers prove who they are"
    return "everybody may call"


def _data_dir(path: Path) -> _Found:
    if not path.exists():
        parent = next(one for one in path.absolute().parents if one.exists())
        if os.access(parent, os.W_OK | os.X_OK):
            return "ok", f"{path} is made at the first start"
        return "failed", f"{path} is not there, and {parent} is not writable here"
    if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
        return "failed", f"{path} is not writable for this user (uid {os.geteuid()})"
    if (path / UNFINISHED).exists():
        return "failed", f"{path}: a backup was not put back to its end; run 'penstock core restore' again"
    mode = path.stat().st_mode & 0o777
    if mode & 0o002:
        return "failed", f"{path} is writable for everybody (mode {mode:o}); chmod o-w it"
    return "ok", f"{path} (mode {mode:o})"


def _space(path: Path) -> _Found:
    there = next(one for one in (path.absolute(), *path.absolute().parents) if one.exists())
    free = shutil.disk_usage(there).free
    state: State = "ok" if free > _LOW_BYTES else "warning" if free > _FULL_BYTES else "failed"
    advice = "" if state == "ok" else "; 'penstock core gc' removes what nothing refers to"
    return state, f"{size(free)} free{advice}"


def _port(host: str, port: int) -> _Found:
    if port == 0:
        return "ok", "a free one is taken"
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host.strip("[]"), port))
        except OSError as error:
            if _is_core(host, port):
                return "ok", f"{host}:{port}: a core answers there"
            return "warning", f"{host}:{port}: {error.strerror}; no core can start there unless this is one that runs"
    return "ok", f"{host}:{port} is free"


def _is_core(host: str, port: int) -> bool:
    near = "127.0.0.1" if host in ("", "0.0.0.0", "::") else host
    try:
        return ask(f"http://{near}:{port}", "GET", "/v2/health/live", timeout_s=_TIMEOUT_S).status in (200, 503)
    except PenstockError:
        return False


def _certificates(settings: CoreSettings) -> _Found:
    if not settings.tls.certificate:
        return "ok", "no TLS: what is sent can be read on the way, unless something before the core encrypts it"
    ServerCertificates(settings.tls)
    asked = ", and of those that clients show" if settings.tls.client_ca else ""
    return "ok", f"{settings.tls.certificate} and its key fit together{asked}"


def _trust(settings: CoreSettings, environment: Mapping[str, str]) -> _Found:
    root = trust.configured(settings.trust_root, environment)
    if root is None:
        return "ok", "no trust root: what is served need not be signed"
    return "ok", f"{len(root.keys())} keys in {root.directory}"


def _database(settings: CoreSettings) -> _Found:
    file = Path(settings.data_dir) / DATABASE_FILE
    if settings.database:
        where = "PostgreSQL"
        reached = _reached(settings)
        version = reached.run_now(version_of)
        reached.close()
    elif not file.exists():
        return "ok", f"{file} is made at the first start"
    else:
        where = str(file)
        copied, version = opened_copy(file)
        copied.close()
    if version > SCHEMA_VERSION:
        return "failed", newer_state(where, found=version, known=SCHEMA_VERSION).message
    if version < SCHEMA_VERSION:
        return "ok", f"{where} has version {version} of the state, which becomes {SCHEMA_VERSION} at the next start"
    return "ok", f"{where} has version {version} of the state"


def _blobs(settings: CoreSettings, *, is_deep: bool) -> _Found:
    root = settings.registry.root(Path(settings.data_dir))
    if not root.is_dir():
        return "ok", "none yet"
    store = BlobStore(root)
    wrong = list(_wrong(settings, store, is_deep=is_deep))
    total = sum(store.size_bytes(digest) for digest in store.digests())
    how = "all hashed" if is_deep else "--deep hashes them"
    if wrong:
        more = f" and {len(wrong) - _MAX_NAMED} more" if len(wrong) > _MAX_NAMED else ""
        return "failed", f"{'; '.join(wrong[:_MAX_NAMED])}{more}: push what they belong to again"
    return "ok", f"{sum(1 for _ in store.digests())} with {size(total)}, {how}"


def _wrong(settings: CoreSettings, store: BlobStore, *, is_deep: bool) -> Iterator[str]:
    for row in _manifests(settings):
        try:
            needed = needed_blobs([row], store)
        except PenstockError as error:
            yield error.message
            continue
        for digest in needed:
            if not store.has(digest):
                yield f"{digest} of {row.repository} is gone"
    for digest in store.digests() if is_deep else ():
        try:
            store.verify(digest)
        except PenstockError as error:
            yield error.message


def _manifests(settings: CoreSettings) -> tuple[catalog.ManifestRow, ...]:
    if settings.database:
        database = _reached(settings)
        if database.run_now(version_of) != SCHEMA_VERSION:
            database.close()
            return ()
    elif (file := Path(settings.data_dir) / DATABASE_FILE).exists():
        database, _ = opened_copy(file)
    else:
        return ()
    try:
        return database.run_now(catalog.snapshot).manifests
    finally:
        database.close()


def _reached(settings: CoreSettings) -> Database:
    """Open PostgreSQL to look at it."""
    return Database.connect(settings.database, connect_s=settings.cluster.connect_s, is_looked_at=True)
