"""A core with a trust root: what is unsigned is stored and not served; clients that others wrote move all of it."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cloud_core.registry.registry import Registry
from cloud_core.settings import ServingSettings
from cloud_core.state import Database
from penstock.artifact import manifests
from penstock.artifact.layout import Layout
from penstock.artifact.overview import overview_of
from penstock.errors import SignatureError
from penstock.registry import transfer
from penstock.signing import ed25519, trust
from penstock.signing.ed25519 import SigningKey
from tests.cloud_core.rig import Rig, rig_of
from tests.penstock.hosting.rig import outcome, rows
from tests.penstock.signed import make_layout, new_certificate, trusting

Put = Callable[..., Any]


@pytest.fixture
def key() -> SigningKey:
    return ed25519.generate()


@pytest.fixture
async def rig(tmp_path: Path, database: Database, key: SigningKey, clock: Any) -> AsyncIterator[Rig]:
    registry = Registry.open(tmp_path / "core", database, now=clock, trust=trusting(tmp_path, key))
    made = rig_of(registry, ServingSettings())
    yield made
    await made.controller.close(5.0)


async def test_unsigned_is_stored_and_not_served_until_it_is_signed(
    rig: Rig, put: Put, key: SigningKey, tmp_path: Path
) -> None:
    layout = make_layout(tmp_path)
    digest = await put(rig.registry, layout)
    await rig.settle()
    (state,) = rig.controller.index()
    assert state.state == "UNAVAILABLE"
    assert "is not signed" in state.reason
    assert isinstance(await outcome(rig.infer(rows(1), model="digits")), SignatureError)
    assert rig.registry.certificate_of(digest) is None  # no device is told of it either
    trust.sign(layout.root, key)
    await put(rig.registry, layout)
    await rig.settle()
    assert [state.state for state in rig.controller.index()] == ["READY"]
    answer = await rig.infer(np.ones((1, 4), np.float32), model="digits")
    assert answer.outputs["logits"].tolist() == [[2.0, 2.0, 2.0]]  # with its external data
    assert rig.registry.certificate_of(digest) is not None


async def test_a_certificate_that_was_not_signed_is_named_to_nobody(
    rig: Rig, put: Put, key: SigningKey, tmp_path: Path
) -> None:
    layout = make_layout(tmp_path)
    trust.sign(layout.root, key)
    signed = layout.certificates()[0][0]
    layout.attach_certificate(new_certificate(layout, serial=2, threshold=0.01))
    digest = await put(rig.registry, layout)
    found = rig.registry.certificate_of(digest)
    assert found is not None
    assert found[0] == signed


async def test_files_of_variants_outlive_the_collection_of_garbage(
    rig: Rig, put: Put, key: SigningKey, tmp_path: Path
) -> None:
    layout = make_layout(tmp_path)
    trust.sign(layout.root, key)
    await put(rig.registry, layout)
    for digest in rig.registry.store.digests():
        os.utime(rig.registry.store.path(digest), (0, 0))
    assert (await rig.registry.garbage.collect()).removed == ()
    await rig.settle()
    assert [state.state for state in rig.controller.index()] == ["READY"]


async def test_a_name_that_leads_elsewhere_is_refused_at_the_push(rig: Rig, put: Put, tmp_path: Path) -> None:
    layout = make_layout(tmp_path)
    index = json.loads(layout.blobs.read(layout.digest))
    manifest = json.loads(layout.blobs.read(index["manifests"][0]["digest"]))
    for layer in manifest["layers"]:
        if layer["mediaType"] == manifests.MODEL_FILE:
            layer["annotations"][manifests.TITLE] = "../../evil"
    data = json.dumps(manifest).encode()
    index["manifests"][0] |= {"digest": layout.blobs.put(data), "size": len(data)}
    written = json.dumps(index).encode()
    for descriptor in layout.reachable():
        rig.registry.store.put(layout.blobs.read(descriptor.digest))
    for body, kind in (
        (data, manifests.MANIFEST),
        (layout.blobs.read(index["manifests"][1]["digest"]), manifests.MANIFEST),
    ):
        await rig.registry.put_manifest("digits", manifests.digest_of(body), kind, body)
    refused = await outcome(rig.registry.put_manifest("digits", "v1", manifests.INDEX, written))
    assert "no name for a file" in str(refused)


async def run(*command: str) -> str:
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, error = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, error.decode()
    return out.decode()


def complete(directory: Path) -> Layout:
    """An artifact with everything an artifact can have: several files, two certificates, documents, signatures."""
    layout = make_layout(directory, roles=("edge", "site"))
    for kind in (manifests.EVIDENCE, manifests.EVALUATION, manifests.REPORT):
        layout.attach(kind, b"{}" + kind.encode(), title="document")
    for _ in range(2):
        trust.sign(layout.root, ed25519.generate())
    return layout


async def test_our_own_client_moves_all_of_it(served: Any, tmp_path: Path) -> None:
    layout = complete(tmp_path)
    with transfer.RegistryClient(served.url) as client:
        await asyncio.to_thread(transfer.push, client, layout)
        await asyncio.to_thread(transfer.pull, client, "digits:v1", tmp_path / "back")
        found = await asyncio.to_thread(transfer.overview, client, "digits:v1")
    back = Layout(tmp_path / "back")
    assert back.artifact() == layout.artifact()
    assert back.referrers() == layout.referrers()
    assert back.verify() == []
    assert found == overview_of(layout)


async def test_skopeo_moves_all_of_it(served: Any, tmp_path: Path) -> None:
    """It copies what it is pointed at: the index with its variants, then each referrer by its name."""
    if shutil.which("skopeo") is None:
        pytest.skip("skopeo is not installed (apt-get install skopeo)")
    layout = complete(tmp_path)
    image, plain = f"docker://127.0.0.1:{served.port}/digits", ("--dest-tls-verify=false",)
    await run("skopeo", "copy", "--all", *plain, f"oci:{layout.root}:v1", f"{image}:v1")
    for entry in layout.index.manifests[1:]:
        await run(
            "skopeo",
            "copy",
            *plain,
            f"oci:{layout.root}:{entry.annotations[manifests.REF_NAME]}",
            f"{image}@{entry.digest}",
        )
    assert served.registry.resolve("digits").digest == layout.digest
    listed = served.registry.referrers("digits", layout.digest)
    assert {one.digest for one in listed} == {one.digest for one in layout.referrers()}
    back = tmp_path / "back"
    await run("skopeo", "copy", "--all", "--src-tls-verify=false", f"{image}:v1", f"oci:{back}:v1")
    for one in listed:
        name = one.digest.removeprefix("sha256:")[:12]
        await run("skopeo", "copy", "--src-tls-verify=false", f"{image}@{one.digest}", f"oci:{back}:{name}")
    copied = Layout(back)
    assert copied.artifact() == layout.artifact()
    assert {one.digest for one in copied.referrers()} == {one.digest for one in layout.referrers()}
    assert copied.verify() == []


async def test_oras_moves_the_artifact(served: Any, tmp_path: Path) -> None:
    """The Python client of the ORAS project: it pushes a layout's tag, and what a tag names comes back unchanged."""
    from oras.layout import NewLayout, NewLayoutFromRegistry
    from oras.provider import Registry as OrasRegistry

    layout = complete(tmp_path)
    target = f"127.0.0.1:{served.port}/digits:v1"

    def there_and_back() -> None:
        client = OrasRegistry(f"127.0.0.1:{served.port}", insecure=True)
        NewLayout(str(layout.root)).push_to_registry(client, target, tag="v1")
        NewLayoutFromRegistry(str(tmp_path / "back"), client, target, tag="v1")

    await asyncio.to_thread(there_and_back)
    assert served.registry.resolve("digits").digest == layout.digest
    assert Layout(tmp_path / "back").artifact() == layout.artifact()
    assert Layout(tmp_path / "back").verify() == []
