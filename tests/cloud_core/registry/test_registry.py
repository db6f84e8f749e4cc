"""Names, defaults, certificates, restarts and what is swept up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from cloud_core.registry.oci_errors import Refused
from cloud_core.registry.registry import Registry
from cloud_core.registry.settings import RegistrySettings
from cloud_core.state import Database
from penstock.artifact import golden, manifests
from penstock.artifact.blobs import digest_of
from penstock.artifact.golden import Golden
from penstock.artifact.manifests import Descriptor, Manifest
from penstock.errors import DigestMismatch, NotFound


async def test_the_first_version_becomes_the_default_and_later_ones_do_not(
    registry: Registry, make_layout: Any, put: Any, clock: Any
) -> None:
    changes: list[str] = []
    registry.on_change(lambda: changes.append(registry.resolve("digits").tag if registry.models() else ""))
    first = await put(registry, make_layout("v1"))
    clock.advance(1)
    await put(registry, make_layout("v2"))
    assert registry.models() == ("digits",)
    assert [(v.tag, v.is_default) for v in registry.versions("digits")] == [("v1", True), ("v2", False)]
    assert registry.resolve("digits").digest == first
    assert changes[-1] == "v1"


async def test_a_version_is_a_tag_a_digest_or_a_prefix(registry: Registry, make_layout: Any, put: Any) -> None:
    digest = await put(registry, make_layout("v1"))
    other = await put(registry, make_layout("v2"))
    assert registry.resolve("digits", "v2").digest == other
    assert registry.resolve("digits", digest).tag == "v1"
    assert registry.resolve("digits", digest[:19]).digest == digest
    assert registry.resolve("digits", digest[7:19]).digest == digest
    for bad in (digest[7:18], "v3", "sha256:" + "0" * 64, "", "../v1"):
        if bad:
            with pytest.raises(NotFound, match="it has v2, v1"):
                registry.resolve("digits", bad)
    with pytest.raises(NotFound, match="models here: digits"):
        registry.resolve("letters")
    variant = registry.artifact(digest).variants[0].digest
    with pytest.raises(NotFound):
        registry.resolve("digits", variant)


async def test_golden_vectors_may_be_larger_than_a_manifest(registry: Registry, make_layout: Any, put: Any) -> None:
    pictures = np.zeros((4, 3, 224, 224), np.float32)  # in and out, 4.6 MiB
    vectors = golden.encode(Golden(inputs={"x": pictures}, outputs={"x": pictures}))
    await put(registry, make_layout("v1", cloud_golden=vectors))
    assert registry.resolve("digits").tag == "v1"


async def test_a_tag_moves_and_the_digest_stays(registry: Registry, make_layout: Any, put: Any) -> None:
    old = await put(registry, make_layout("v1"))
    new = await put(registry, make_layout("v2"), "v1")
    assert registry.resolve("digits", "v1").digest == new
    assert registry.resolve("digits").digest == old, "a moved name does not move what is live"
    assert registry.resolve("digits", old).tag == ""


async def test_everything_survives_a_restart(
    registry: Registry, database: Database, make_layout: Any, put: Any, tmp_path: Path, clock: Any
) -> None:
    layout = make_layout("v1")
    await put(registry, layout)
    second = await put(registry, make_layout("v2"))
    await registry.set_default("digits", second)
    again = Registry.open(tmp_path / "core", database, now=clock)
    assert again.resolve("digits").tag == "v2"
    assert again.versions("digits") == registry.versions("digits")
    assert again.artifact(layout.digest) == layout.artifact()
    assert again.certificate_of(layout.digest) == layout.certificates()[-1]
    weights = layout.artifact().variant("cloud").weights.digest
    assert again.blob_path(weights).read_bytes() == layout.blobs.read(weights)


async def test_an_unfinished_upload_continues_after_a_restart(
    registry: Registry, database: Database, tmp_path: Path, clock: Any
) -> None:
    upload = registry.uploads.begin(clock())
    registry.uploads.append(upload, b"first ", clock())
    again = Registry.open(tmp_path / "core", database, now=clock)
    found = again.uploads.get(upload.id)
    assert found.offset == 6
    again.uploads.append(found, b"second", clock())
    digest = digest_of(b"first second")
    again.uploads.finish(found, digest, clock())
    assert again.store.read(digest) == b"first second"


async def test_a_certificate_that_came_before_its_subject_and_does_not_fit_is_not_used(
    registry: Registry, make_layout: Any, put: Any
) -> None:
    mine, other = make_layout("v1"), make_layout("v2")
    stolen = other.referrers(manifests.CERTIFICATE)[0].content
    registry.store.put(other.blobs.read(stolen.digest))
    registry.store.put(b"{}")
    manifest = Manifest(
        schema_version=2,
        media_type=manifests.MANIFEST,
        artifact_type=manifests.CERTIFICATE,
        config=Descriptor(media_type=manifests.EMPTY_CONFIG, digest=digest_of(b"{}"), size=2),
        layers=[stolen],
        subject=Descriptor(media_type=manifests.INDEX, digest=mine.digest, size=mine.blobs.size_bytes(mine.digest)),
    )
    data = msgspec.json.encode(manifest)
    await registry.put_manifest("digits", digest_of(data), manifests.MANIFEST, data)
    await put(registry, mine)
    assert len(registry.referrers("digits", mine.digest, manifests.CERTIFICATE)) == 2
    assert registry.certificate_of(mine.digest) == mine.certificates()[-1]


async def test_an_uncertified_artifact_has_no_certificate(registry: Registry, make_layout: Any, put: Any) -> None:
    assert registry.certificate_of(await put(registry, make_layout("v1", certified=False))) is None


async def test_a_tampered_manifest_is_noticed(
    registry: Registry, database: Database, make_layout: Any, put: Any, tmp_path: Path, clock: Any
) -> None:
    digest = await put(registry, make_layout("v1"))
    path = registry.store.path(digest)
    path.write_bytes(path.read_bytes().replace(b"cpu", b"gpu"))
    again = Registry.open(tmp_path / "core", database, now=clock)
    with pytest.raises(DigestMismatch):
        again.artifact(digest)


async def test_the_catalog_is_bounded(database: Database, tmp_path: Path, make_layout: Any, put: Any) -> None:
    registry = Registry.open(tmp_path / "small", database, RegistrySettings(max_manifests=3))
    await put(registry, make_layout("v1", certified=False))
    with pytest.raises(Refused, match="3 manifests, its limit"):
        await put(registry, make_layout("v2", certified=False))
    assert registry.resolve("digits").tag == "v1"
