"""Backups of a core that runs, put back elsewhere; and what 'core check' finds right and wrong. Each cut short, too."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from cloud_core.app import Core
from cloud_core.backups import CONTENTS, back_up, read, restore
from cloud_core.checking import Finding, examine
from cloud_core.settings import CoreSettings
from examples.digits.processes import penstock
from penstock.artifact.blobs import BlobStore
from penstock.errors import Conflict, DigestMismatch, NotFound, StorageError
from penstock.sdk.aio import AsyncClient
from tests.cloud_core.rig import core_in_a_thread, core_settings
from tests.postgresql import postgresql

ROWS = {"x": np.ones((2, 4), np.float32)}

CUT = """
import os, signal, sys
from pathlib import Path
from cloud_core import backups
from cloud_core.settings import CoreSettings
from penstock.artifact.blobs import BlobStore

put_file, left = BlobStore.put_file, [int(sys.argv[1])]

def put(self, source):
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    left[0] -= 1
    return put_file(self, source)

BlobStore.put_file = put
here, there = Path(sys.argv[3]), Path(sys.argv[4])
if sys.argv[2] == "backup":
    backups.back_up(CoreSettings(data_dir=str(here)), there)
else:
    backups.restore(here, CoreSettings(data_dir=str(there)))
"""


def cut_short(what: str, of: Path, to: Path, *, after_blobs: int) -> None:
    done = subprocess.run([sys.executable, "-c", CUT, str(after_blobs), what, str(of), str(to)], check=False)
    assert done.returncode == -signal.SIGKILL


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Core, Path]]:
    """A core that serves mlp:v1 while its directory is backed up."""
    directory = tmp_path_factory.mktemp("core")
    with core_in_a_thread(directory) as running:
        yield running, directory / "core"


async def answers(data_dir: Path) -> np.ndarray:
    started = await Core.start(core_settings(data_dir))
    try:
        async with AsyncClient(f"http://127.0.0.1:{started.http_port}") as client:
            return (await client.infer("mlp", ROWS)).outputs["logits"]
    finally:
        await started.stop()


async def test_what_is_backed_up_from_a_running_core_serves_elsewhere(core: tuple[Core, Path], tmp_path: Path) -> None:
    running, data_dir = core
    async with AsyncClient(f"http://127.0.0.1:{running.http_port}") as client:
        before = (await client.infer("mlp", ROWS)).outputs["logits"]
    shown = json.loads(penstock("core", "backup", tmp_path / "backup", "--data-dir", data_dir, "-o", "json").stdout)
    assert shown["new_blobs"] == shown["blobs"] > 0
    again, new = back_up(CoreSettings(data_dir=str(data_dir)), tmp_path / "backup")
    assert (new, again.blobs) == (0, shown["blobs"]), "what is there already is not copied again"
    assert len(list((tmp_path / "backup").glob("core-*.db"))) == 1
    assert (tmp_path / "backup").stat().st_mode & 0o077 == 0
    penstock("core", "restore", tmp_path / "backup", "--data-dir", tmp_path / "new")
    assert np.array_equal(await answers(tmp_path / "new"), before)


def test_a_backup_that_is_killed_leaves_the_one_before_and_is_made_again(
    core: tuple[Core, Path], tmp_path: Path
) -> None:
    _, data_dir = core
    settings = CoreSettings(data_dir=str(data_dir))
    cut_short("backup", data_dir, tmp_path / "backup", after_blobs=1)
    with pytest.raises(NotFound, match="no whole backup"):
        read(tmp_path / "backup")
    made, new = back_up(settings, tmp_path / "backup")
    assert new == made.blobs - 1
    for digest in list(BlobStore(tmp_path / "backup" / "registry").digests())[:1]:
        BlobStore(tmp_path / "backup" / "registry").delete(digest)
    cut_short("backup", data_dir, tmp_path / "backup", after_blobs=0)
    assert read(tmp_path / "backup") == made
    back_up(settings, tmp_path / "backup")
    restore(tmp_path / "backup", CoreSettings(data_dir=str(tmp_path / "new")))


async def test_no_core_starts_where_a_backup_was_half_put_back_and_doing_it_again_ends_it(
    core: tuple[Core, Path], tmp_path: Path
) -> None:
    _, data_dir = core
    back_up(CoreSettings(data_dir=str(data_dir)), tmp_path / "backup")
    cut_short("restore", tmp_path / "backup", tmp_path / "new", after_blobs=1)
    with pytest.raises(StorageError, match="run 'penstock core restore' again"):
        await Core.start(core_settings(tmp_path / "new"))
    assert findings(CoreSettings(data_dir=str(tmp_path / "new")))["data directory"].state == "failed"
    restore(tmp_path / "backup", CoreSettings(data_dir=str(tmp_path / "new")))
    assert (await answers(tmp_path / "new")).shape == (2, 3)


def test_nothing_is_put_back_over_state_or_from_what_is_damaged(core: tuple[Core, Path], tmp_path: Path) -> None:
    _, data_dir = core
    made, _ = back_up(CoreSettings(data_dir=str(data_dir)), tmp_path / "backup")
    with pytest.raises(StorageError, match="in use by another core"):
        restore(tmp_path / "backup", CoreSettings(data_dir=str(data_dir)))
    restore(tmp_path / "backup", CoreSettings(data_dir=str(tmp_path / "new")))
    with pytest.raises(Conflict, match="has state of a core"):
        restore(tmp_path / "backup", CoreSettings(data_dir=str(tmp_path / "new")))
    (blob, *_) = BlobStore(tmp_path / "backup" / "registry").digests()
    path = BlobStore(tmp_path / "backup" / "registry").path(blob)
    path.chmod(0o600)
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(DigestMismatch):
        restore(tmp_path / "backup", CoreSettings(data_dir=str(tmp_path / "other")))
    assert not (tmp_path / "other" / "core.db").exists()
    (tmp_path / "backup" / made.database).write_bytes(b"other bytes")
    with pytest.raises(DigestMismatch, match="is not what was backed up"):
        restore(tmp_path / "backup", CoreSettings(data_dir=str(tmp_path / "third")))


def test_what_cannot_be_backed_up_says_why(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no data directory of a core"):
        back_up(CoreSettings(data_dir=str(tmp_path / "nothing")), tmp_path / "backup")
    with pytest.raises(Conflict, match="pg_dump"):
        back_up(CoreSettings(data_dir=str(tmp_path), database="postgresql://h/d"), tmp_path / "backup")
    assert not (tmp_path / "backup" / CONTENTS).exists()


# -- core check ------------------------------------------------------------------------------------------------------


def findings(settings: CoreSettings, *, is_deep: bool = False) -> dict[str, Finding]:
    return {one.check: one for one in examine(settings, {"HOME": "/nonexistent"}, is_deep=is_deep)}


def test_beside_a_running_core_nothing_is_wrong(core: tuple[Core, Path]) -> None:
    running, data_dir = core
    settings = core_settings(data_dir, http={"port": running.http_port}, grpc={"port": 0})
    found = findings(settings, is_deep=True)
    assert {one.state for one in found.values()} == {"ok"}, found
    assert found["http port"].found.endswith("a core answers there")
    assert "all hashed" in found["blobs"].found
    done = penstock("core", "check", "--data-dir", data_dir, "--deep", check=False)
    assert (done.returncode, "blobs" in done.stdout) == (0, True)


def test_before_the_first_start_it_says_what_will_be_made(tmp_path: Path) -> None:
    found = findings(CoreSettings(data_dir=str(tmp_path / "new")))
    assert found["data directory"].state == found["database"].state == "ok"
    assert "made at the first start" in found["database"].found
    assert not (tmp_path / "new").exists()


def test_each_thing_that_is_wrong_is_found_by_its_own_check(core: tuple[Core, Path], tmp_path: Path) -> None:
    _, data_dir = core
    back_up(CoreSettings(data_dir=str(data_dir)), tmp_path / "backup")
    restore(tmp_path / "backup", CoreSettings(data_dir=str(tmp_path / "new")))
    store = BlobStore(tmp_path / "new" / "registry")
    largest = max(store.digests(), key=store.size_bytes)
    path = store.path(largest)
    path.chmod(0o600)
    path.write_bytes(b"?" + path.read_bytes()[1:])
    settings = core_settings(tmp_path / "new", tls={"certificate": "/no/where", "key": "/no/where"})
    found = findings(settings, is_deep=True)
    assert {name for name, one in found.items() if one.state == "failed"} == {"certificates", "blobs"}
    assert largest.removeprefix("sha256:")[:12] in found["blobs"].found
    store.delete(largest)
    assert "is gone" in findings(settings)["blobs"].found
    (tmp_path / "new" / "core.db").write_bytes(b"no database " * 1000)
    assert findings(settings)["database"].state == "failed"
    done = penstock("core", "check", "--data-dir", tmp_path / "new", "-o", "json", check=False)
    assert done.returncode == 1
    states = {one["check"]: one["state"] for one in json.loads(done.stdout)["findings"]}
    assert states["database"] == "failed"


def test_postgresql_is_looked_at_and_left_as_it_is(tmp_path: Path) -> None:
    away = CoreSettings(data_dir=str(tmp_path), database="postgresql://penstock:s3cret@127.0.0.1:1/penstock")
    found = findings(away)["database"]
    assert (found.state, "s3cret" in found.found) == ("failed", False)
    with postgresql() as server:
        url = server.new_database("empty")
        there = findings(CoreSettings(data_dir=str(tmp_path), database=url))["database"]
        assert (there.state, "has version 0" in there.found) == ("ok", True)
        with pytest.raises(Exception, match="tags"):
            server.execute("SELECT * FROM tags", database="empty")
