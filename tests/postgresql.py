"""A PostgreSQL of its own for the tests that need one, from Debian's or any other installed binaries.

Started on a free port of loopback in a directory of its own; it refuses root, so root runs it as another user.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from tests.waiting import PATIENCE_S, wait_until

_READY = "database system is ready to accept connections"
_DEBIAN = Path("/usr/lib/postgresql")


@dataclass
class PostgreSql:
    """A server with a superuser ``penstock`` that anybody on this machine may be.

    Attributes:
        programs: where ``postgres`` and the others are.
    """

    directory: Path
    port: int
    programs: Path
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def url(self, database: str = "postgres") -> str:
        return f"postgresql://penstock@127.0.0.1:{self.port}/{database}"

    def new_database(self, name: str) -> str:
        """Make a database, empty again where there was one; its URL."""
        self.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)", f"CREATE DATABASE {name}")
        return self.url(name)

    def execute(self, *statements: str, database: str = "postgres") -> None:
        url = self.url(database).replace("postgresql:", "postgresql+psycopg:")
        engine = create_engine(url, isolation_level="AUTOCOMMIT")
        try:
            with engine.connect() as connection:
                for statement in statements:
                    connection.execute(text(statement))
        finally:
            engine.dispose()

    def start(self) -> None:
        quick = ("-c", "fsync=off", "-c", "full_page_writes=off", "-c", "shared_buffers=16MB")
        where = ("-D", str(self.directory / "data"), "-h", "127.0.0.1", "-p", str(self.port), "-k", "")
        file = self.directory / "postgres.log"
        before = file.read_text(errors="replace").count(_READY) if file.exists() else 0
        with file.open("ab") as log:
            self._process = subprocess.Popen(
                [*_as_somebody(), str(self.programs / "postgres"), *where, *quick], stdout=log, stderr=log
            )
        wait_until("PostgreSQL", lambda: file.read_text(errors="replace").count(_READY) > before)

    def stop(self) -> None:
        """End it at once, as with a power cut."""
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait(PATIENCE_S)
            self._process = None


@contextlib.contextmanager
def postgresql() -> Iterator[PostgreSql]:
    """Run a server until the end of the block."""
    programs = _programs()
    pytest.importorskip("psycopg", reason="psycopg is not installed: pip install 'penstock[postgres]'")
    directory = Path(tempfile.mkdtemp(prefix="penstock-pg-"))
    try:
        if user := _as_somebody():
            os.chown(directory, int(user[1].partition("=")[2]), int(user[2].partition("=")[2]))
        initdb = [
            str(programs / "initdb"),
            "-D",
            str(directory / "data"),
            "-U",
            "penstock",
            "-A",
            "trust",
            "-N",
            "-E",
            "UTF8",
        ]
        subprocess.run([*_as_somebody(), *initdb, "--no-locale"], check=True, capture_output=True, timeout=PATIENCE_S)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        server = PostgreSql(directory, port, programs)
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _programs() -> Path:
    found = shutil.which("postgres")
    folders = [Path(found).resolve().parent] if found else []
    folders += sorted((folder / "bin" for folder in _DEBIAN.glob("*")), reverse=True) if _DEBIAN.is_dir() else []
    for folder in folders:
        if (folder / "initdb").exists():
            return folder
    pytest.skip("PostgreSQL is not installed (apt-get install postgresql)")


def _as_somebody() -> list[str]:
    """Return what makes a program run as another user than root; nothing where the tests are not root's."""
    if os.geteuid() != 0:
        return []
    try:
        user = pwd.getpwnam("postgres")
    except KeyError:
        user = pwd.getpwnam("nobody")
    return ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
