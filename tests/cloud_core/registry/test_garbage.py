"""What nothing refers to goes when it is old; nothing goes that a push relies on."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from cloud_core.registry.registry import Registry
from cloud_core.state import Database
from penstock.artifact.blobs import digest_of
from penstock.errors import StorageError
from penstock.registry import transfer
from tests.cloud_core.registry.test_oci_api import DATA, DIGEST, push_blob
from tests.cloud_core.rig import start_core
from tests.waiting import until

OTHER = b"other weights"


def age(registry: Registry, clock: Any) -> None:
    """Let everything have been written long before the limit."""
    at = clock().timestamp() - 2 * registry.settings.orphan_ttl_s
    for path in registry.store.root.rglob("*"):
        if not path.is_dir() or path.parent.name == "unpacked":
            os.utime(path, (at, at))


@pytest.fixture
async def http(served: Any) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(served.url) as session:
        yield session


async def test_old_blobs_uploads_and_temporary_files_go_and_nothing_else(
    registry: Registry, make_layout: Any, put: Any, clock: Any
) -> None:
    layout = make_layout("v1")
    await put(registry, layout)
    blobs = registry.store.path(registry.store.put(b"old")).parent
    (blobs / ".tmp-killed").write_bytes(b"half")
    upload = registry.uploads.begin(clock())
    registry.uploads.append(upload, b"12345", clock())
    age(registry, clock)
    young = registry.store.put(b"young")
    os.utime(registry.store.path(young), (clock().timestamp(),) * 2)

    clock.advance(registry.settings.upload_ttl_s - 1)
    assert [one.name for one in (await registry.garbage.collect(is_dry_run=True)).removed] == [
        digest_of(b"old"), "blobs/sha256/.tmp-killed",
    ]  # fmt: skip
    clock.advance(2)
    os.utime(registry.store.path(young), (clock().timestamp(),) * 2)
    dry = await registry.garbage.collect(is_dry_run=True)
    assert registry.store.has(digest_of(b"old"))
    assert len(registry.uploads) == 1
    found = await registry.garbage.collect()
    assert found.removed == dry.removed
    assert {(one.kind, one.size_bytes) for one in found.removed} == {("blob", 3), ("upload", 5), ("temporary", 4)}
    assert [one.name for one in found.young] == [young]
    assert len(registry.uploads) == 0
    here = {digest_of(path.read_bytes()) for path in registry.store.root.rglob("*") if path.is_file()}
    assert here == {young, layout.digest, *(descriptor.digest for descriptor in layout.reachable())}
    assert (await registry.garbage.collect()).removed == ()


async def test_what_a_deleted_version_alone_referred_to_goes_with_what_was_unpacked_of_it(
    registry: Registry, make_layout: Any, put: Any, clock: Any
) -> None:
    first, second = make_layout("v1"), make_layout("v2", certified=False)
    await put(registry, first)
    digest = await put(registry, second)
    for variant in (first.artifact().variants[0], second.artifact().variants[0]):
        directory = registry.store.root / "unpacked" / variant.digest.removeprefix("sha256:")
        directory.mkdir(parents=True)
        (directory / "model.onnx").hardlink_to(registry.store.path(variant.weights.digest))
    weights = second.artifact().variants[0].weights
    await registry.delete_manifest("digits", digest)
    for variant in second.artifact().variants:
        await registry.delete_manifest("digits", variant.digest)
    age(registry, clock)
    found = await registry.garbage.collect()
    assert weights.digest in {one.name for one in found.removed}
    assert [one.size_bytes for one in found.removed if one.kind == "temporary"] == [0], "its blob was counted"
    assert len(list((registry.store.root / "unpacked").iterdir())) == 1
    assert all(registry.store.has(descriptor.digest) for descriptor in first.reachable())


async def test_a_start_collects_too(registry: Registry, database: Database, tmp_path: Path, clock: Any) -> None:
    old = registry.store.put(b"old")
    age(registry, clock)
    assert not Registry.open(tmp_path / "core", database, now=clock).store.has(old)


async def test_nothing_is_removed_while_a_manifest_is_damaged_until_it_is_pushed_again(
    registry: Registry, database: Database, make_layout: Any, put: Any, tmp_path: Path, clock: Any
) -> None:
    layout = make_layout("v1")
    await put(registry, layout)
    old = registry.store.put(b"old")
    registry.store.path(layout.digest).write_bytes(b"damaged")
    age(registry, clock)
    with pytest.raises(StorageError, match="a manifest of digits is damaged"):
        await registry.garbage.collect()
    again = Registry.open(tmp_path / "core", database, now=clock)
    assert again.store.has(old)
    assert again.store.has(layout.artifact().variants[0].weights.digest)
    await put(again, layout)
    assert {one.name for one in (await again.garbage.collect()).removed} == {old}


# -- beside pushes ---------------------------------------------------------------------------------------------------


async def test_a_blob_that_a_push_looked_for_is_kept_until_its_manifest_has_had_time_to_come(
    http: aiohttp.ClientSession, served: Any, clock: Any
) -> None:
    registry = served.registry
    for data in (DATA, OTHER):
        await push_blob(http, data)
    age(registry, clock)
    assert (await http.head(f"/v2/digits/blobs/{DIGEST}")).status == 200
    mount = {"mount": digest_of(OTHER), "from": "digits"}
    assert (await http.post("/v2/letters/blobs/uploads/", params=mount)).status == 201
    assert (await registry.garbage.collect()).removed == ()
    clock.advance(registry.settings.orphan_ttl_s + 1)
    assert {one.name for one in (await registry.garbage.collect()).removed} == {DIGEST, digest_of(OTHER)}
    assert (await http.head(f"/v2/digits/blobs/{DIGEST}")).status == 404


async def test_a_blob_is_new_when_its_upload_ends_however_long_that_took(
    http: aiohttp.ClientSession, served: Any, clock: Any
) -> None:
    location = (await http.post("/v2/digits/blobs/uploads/")).headers["Location"]
    assert (await http.patch(location, data=DATA)).status == 202
    age(served.registry, clock)
    assert (await http.put(location, params={"digest": DIGEST})).status == 201
    assert (await served.registry.garbage.collect()).removed == ()


def test_a_blob_that_is_touched_or_sent_again_between_decision_and_removal_stays(registry: Registry) -> None:
    store = registry.store
    for change in ("touched", "sent again"):
        digest = store.put(OTHER)
        os.utime(store.path(digest), (0, 0))
        if change == "touched":
            assert store.touch(digest, 100.0, every_s=10.0)
        else:
            store.path(digest).write_bytes(OTHER)
        assert not store.remove_untouched(digest, since=50.0)
        assert store.read(digest) == OTHER
    os.utime(store.path(digest), (0, 0))
    assert store.remove_untouched(digest, since=50.0)
    assert not store.touch(digest, 100.0, every_s=10.0), "a push that looks for it now sends it"
    assert store.temporary_files() == ()


async def test_pushes_succeed_while_old_blobs_that_they_need_are_being_removed(served: Any, make_layout: Any) -> None:
    registry, layouts = served.registry, [make_layout(f"v{n}") for n in range(6)]
    needed = {d.digest: layout.blobs.read(d.digest) for layout in layouts for d in layout.reachable()}
    is_pushed = asyncio.Event()
    removed = 0

    def leave_old(digest: str) -> None:
        """Leave a blob as a push of long ago did, where it is not: old from the moment at which it is seen."""
        scratch = registry.store.root / "scratch"
        scratch.write_bytes(needed[digest])
        os.utime(scratch, (0, 0))
        with suppress(FileExistsError):
            os.link(scratch, registry.store.path(digest))
        scratch.unlink()

    async def collect() -> None:
        nonlocal removed
        while not is_pushed.is_set():
            for digest in needed:
                leave_old(digest)
            removed += len((await registry.garbage.collect()).removed)

    collecting = asyncio.create_task(collect())
    await until("a first collection", lambda: removed)
    with transfer.RegistryClient(served.url) as client:
        for layout in layouts:
            await asyncio.to_thread(transfer.push, client, layout)
    is_pushed.set()
    await collecting
    assert len(registry.versions("digits")) == len(layouts)
    for layout in layouts:
        assert all(registry.store.has(descriptor.digest) for descriptor in layout.reachable())


async def test_only_who_may_change_artifacts_may_have_garbage_collected(tmp_path: Path) -> None:
    tenants = [{"name": role, "token": f"token-of-{role}", "role": role} for role in ("admin", "device", "client")]
    async with (
        await start_core(tmp_path, tenants=tenants) as core,
        aiohttp.ClientSession(f"http://127.0.0.1:{core.http_port}") as http,
    ):
        for tenant, query, status in (
            ("client", "", 403),
            ("device", "", 403),
            ("admin", "?dry_run=perhaps", 400),
            ("admin", "?dry_run=true", 200),
        ):
            headers = {"Authorization": f"Bearer token-of-{tenant}"}
            async with http.post(f"/v2/_penstock/registry/gc{query}", headers=headers) as answer:
                assert answer.status == status, await answer.text()


async def test_what_cannot_be_removed_is_named_and_keeps_nothing_else(registry: Registry, clock: Any) -> None:
    odd = registry.store.path("sha256:" + "0" * 64)
    odd.mkdir()
    old = registry.store.put(b"old")
    for path in (odd, registry.store.path(old)):
        os.utime(path, (0, 0))
    found = await registry.garbage.collect()
    assert [one.name for one in found.removed] == [old]
    assert [one.name for one in found.failed] == ["sha256:" + "0" * 64]
