"""The distribution protocol over a real socket: our client, skopeo, curl, and people who send rubbish."""

from __future__ import annotations

import asyncio
import io
import json
import resource
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
import yarl

from penstock.artifact import manifests
from penstock.artifact.blobs import digest_of
from penstock.artifact.layout import Layout
from penstock.errors import ArtifactError, DigestMismatch, InvalidInput, NotFound
from penstock.registry import transfer

DATA = b"weights" * 1000
DIGEST = digest_of(DATA)


@pytest.fixture
async def http(served: Any) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(served.url) as session:
        yield session


async def run(*command: str) -> str:
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output, _ = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, output.decode()
    return output.decode()


async def error_of(response: aiohttp.ClientResponse, status: int, code: str) -> str:
    """Check an error's form and return its message."""
    assert response.status == status, await response.text()
    (error,) = (await response.json())["errors"]
    assert set(error) == {"code", "message", "detail"}
    assert error["code"] == code
    return str(error["message"])


async def push_blob(http: aiohttp.ClientSession, data: bytes, repository: str = "digits") -> None:
    started = await http.post(f"/v2/{repository}/blobs/uploads/")
    assert started.status == 202
    done = await http.put(started.headers["Location"], params={"digest": digest_of(data)}, data=data)
    assert done.status == 201, await done.text()
    assert done.headers["Docker-Content-Digest"] == digest_of(data)


# -- whole artifacts -----------------------------------------------------------------------------------------------


async def test_push_and_pull_give_back_the_same_artifact_with_its_certificate(
    served: Any, make_layout: Any, tmp_path: Path
) -> None:
    layout = make_layout("v1")
    seen: list[tuple[int, ...]] = []
    with transfer.RegistryClient(served.url) as client:
        pushed = await asyncio.to_thread(transfer.push, client, layout, report=lambda *at: seen.append(at))
        again = await asyncio.to_thread(transfer.push, client, layout)
        pulled = await asyncio.to_thread(transfer.pull, client, "digits:v1", tmp_path / "pulled")
        by_digest = await asyncio.to_thread(transfer.pull, client, f"digits@{layout.digest}", tmp_path / "by-digest")
    assert pushed.digest == pulled.digest == by_digest.digest == layout.digest
    assert seen[-1][0] == seen[-1][1] > 0
    assert again.skipped_bytes > 0
    copy = Layout(tmp_path / "pulled")
    assert copy.verify() == []
    assert copy.tag == "v1"
    assert copy.certificates()[-1] == layout.certificates()[-1]
    assert served.registry.certificate_of(layout.digest) == layout.certificates()[-1]


async def test_push_of_a_damaged_layout_sends_nothing(served: Any, make_layout: Any) -> None:
    layout = make_layout("v1")
    weights = layout.artifact().variants[0].weights.digest
    layout.blobs.path(weights).write_bytes(b"other")
    with transfer.RegistryClient(served.url) as client, pytest.raises(ArtifactError, match=weights):
        await asyncio.to_thread(transfer.push, client, layout)
    assert served.registry.models() == ()


async def test_push_under_another_models_name_is_refused(served: Any, make_layout: Any) -> None:
    with (
        transfer.RegistryClient(served.url) as client,
        pytest.raises(ArtifactError, match="artifact of model 'digits'"),
    ):
        await asyncio.to_thread(transfer.push, client, make_layout("v1"), "letters:v1")
    assert served.registry.models() == ()


async def test_pull_says_what_exists(served: Any, make_layout: Any, tmp_path: Path) -> None:
    with transfer.RegistryClient(served.url) as client:
        await asyncio.to_thread(transfer.push, client, make_layout("v1"))
        with pytest.raises(InvalidInput, match="digits has v1"):
            await asyncio.to_thread(transfer.pull, client, "digits", tmp_path / "a")
        with pytest.raises(NotFound, match="no manifest 'v9'"):
            await asyncio.to_thread(transfer.pull, client, "digits:v9", tmp_path / "a")
        with pytest.raises(NotFound, match="no repository named 'letters'"):
            await asyncio.to_thread(transfer.pull, client, "letters:v1", tmp_path / "a")


async def test_pull_of_a_blob_that_was_damaged_in_the_registry_keeps_nothing(
    served: Any, make_layout: Any, tmp_path: Path
) -> None:
    layout = make_layout("v1")
    with transfer.RegistryClient(served.url) as client:
        await asyncio.to_thread(transfer.push, client, layout)
        weights = layout.artifact().variants[0].weights
        served.registry.store.path(weights.digest).write_bytes(b"x" * weights.size)
        with pytest.raises(DigestMismatch, match="hash to"):
            await asyncio.to_thread(transfer.pull, client, "digits:v1", tmp_path / "pulled")
    pulled = Layout(tmp_path / "pulled")
    assert not pulled.blobs.has(weights.digest)
    with pytest.raises(NotFound):
        _ = pulled.digest


async def test_skopeo_pushes_and_pulls_the_artifact_unchanged(served: Any, make_layout: Any, tmp_path: Path) -> None:
    if shutil.which("skopeo") is None:
        pytest.skip("skopeo is not installed (apt-get install skopeo)")
    layout = make_layout("v1", certified=False)
    image = f"docker://127.0.0.1:{served.port}/digits:v1"
    await run("skopeo", "copy", "--all", "--dest-tls-verify=false", f"oci:{layout.root}:v1", image)
    assert served.registry.resolve("digits").digest == layout.digest
    back = tmp_path / "back"
    await run("skopeo", "copy", "--all", "--src-tls-verify=false", image, f"oci:{back}:v1")
    index = json.loads((back / "index.json").read_bytes())
    assert [entry["digest"] for entry in index["manifests"]] == [layout.digest]
    assert Layout(back).artifact() == layout.artifact()
    listed = await run("skopeo", "list-tags", "--tls-verify=false", f"docker://127.0.0.1:{served.port}/digits")
    assert json.loads(listed)["Tags"] == ["v1"]


async def test_curl_reads_a_manifest_and_a_range(served: Any, make_layout: Any) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    layout = make_layout("v1")
    with transfer.RegistryClient(served.url) as client:
        await asyncio.to_thread(transfer.push, client, layout)
    manifest = await run("curl", "-fsS", f"{served.url}/v2/digits/manifests/v1")
    assert digest_of(manifest.encode()) == layout.digest
    weights = layout.artifact().variants[0].weights
    part = await run("curl", "-fsS", "-r", "1-4", f"{served.url}/v2/digits/blobs/{weights.digest}")
    assert part.encode() == layout.blobs.read(weights.digest)[1:5]


# -- uploads ---------------------------------------------------------------------------------------------------------


async def test_a_chunked_upload_continues_after_a_broken_connection(http: aiohttp.ClientSession, served: Any) -> None:
    location = (await http.post("/v2/digits/blobs/uploads/")).headers["Location"]
    first = await http.patch(location, data=DATA[:3000], headers={"Content-Range": "0-2999"})
    assert (first.status, first.headers["Range"]) == (202, "0-2999")
    where = await http.get(location)
    assert (where.status, where.headers["Range"]) == (204, "0-2999")
    wrong = await http.patch(location, data=DATA[2000:], headers={"Content-Range": f"2000-{len(DATA) - 1}"})
    await error_of(wrong, 416, "RANGE_INVALID")
    assert wrong.headers["Range"] == "0-2999"
    done = await http.put(location, params={"digest": DIGEST}, data=DATA[3000:])
    assert done.status == 201
    assert served.registry.store.read(DIGEST) == DATA
    await error_of(await http.get(location), 404, "BLOB_UPLOAD_UNKNOWN")


async def test_an_upload_in_one_post_and_a_mount(http: aiohttp.ClientSession) -> None:
    done = await http.post("/v2/digits/blobs/uploads/", params={"digest": DIGEST}, data=DATA)
    assert (done.status, done.headers["Location"]) == (201, f"/v2/digits/blobs/{DIGEST}")
    mounted = await http.post("/v2/letters/blobs/uploads/", params={"mount": DIGEST, "from": "digits"})
    assert mounted.status == 201
    absent = await http.post("/v2/letters/blobs/uploads/", params={"mount": digest_of(b"?"), "from": "digits"})
    assert absent.status == 202


async def test_bytes_that_do_not_match_their_digest_are_dropped(http: aiohttp.ClientSession, served: Any) -> None:
    location = (await http.post("/v2/digits/blobs/uploads/")).headers["Location"]
    bad = await http.put(location, params={"digest": DIGEST}, data=DATA[:-1])
    assert "send again" in await error_of(bad, 400, "DIGEST_INVALID")
    assert not served.registry.store.has(DIGEST)
    assert len(served.registry.uploads) == 0


async def test_uploads_are_bounded_in_number_and_age(http: aiohttp.ClientSession, served: Any, clock: Any) -> None:
    for _ in range(3):
        assert (await http.post("/v2/digits/blobs/uploads/")).status == 202
    refused = await http.post("/v2/digits/blobs/uploads/")
    assert "finish or cancel" in await error_of(refused, 429, "TOOMANYREQUESTS")
    assert "Retry-After" in refused.headers
    clock.advance(served.registry.settings.upload_ttl_s + 1)
    assert (await http.post("/v2/digits/blobs/uploads/")).status == 202
    assert len(served.registry.uploads) == 1


async def test_an_upload_that_was_left_alone_gives_way_to_a_new_one(
    http: aiohttp.ClientSession, served: Any, clock: Any
) -> None:
    first, *others = [(await http.post("/v2/digits/blobs/uploads/")).headers["Location"] for _ in range(3)]
    clock.advance(served.registry.settings.upload_idle_s)
    for location in others:
        assert (await http.patch(location, data=DATA)).status == 202
    assert (await http.post("/v2/digits/blobs/uploads/")).status == 202
    await error_of(await http.get(first), 404, "BLOB_UPLOAD_UNKNOWN")
    for location in others:
        assert (await http.put(location, params={"digest": DIGEST})).status == 201


async def test_a_push_that_the_disk_refuses_leaves_nothing_behind(http: aiohttp.ClientSession, served: Any) -> None:
    location = (await http.post("/v2/digits/blobs/uploads/")).headers["Location"]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 * 1024 * 1024, limits[1]))
    try:
        refused = await http.patch(location, data=io.BytesIO(b"\0" * (4 * 1024 * 1024)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert refused.status == 507
    assert len(served.registry.uploads) == 0
    assert list((served.registry.store.root / "uploads").iterdir()) == []


async def test_an_upload_whose_bytes_stop_coming_is_let_go(http: aiohttp.ClientSession, served: Any) -> None:
    location = (await http.post("/v2/digits/blobs/uploads/")).headers["Location"]
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    writer.write(f"PATCH {location} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nsome".encode())
    answer = await asyncio.wait_for(reader.read(12), 30.0)
    writer.close()
    assert answer == b"HTTP/1.1 504"
    assert (await http.delete(location)).status == 204  # nobody writes to it any more


async def test_an_upload_can_be_cancelled(http: aiohttp.ClientSession, served: Any) -> None:
    location = (await http.post("/v2/digits/blobs/uploads/")).headers["Location"]
    assert (await http.delete(location)).status == 204
    await error_of(await http.patch(location, data=b"x"), 404, "BLOB_UPLOAD_UNKNOWN")
    assert list((served.registry.store.root / "uploads").iterdir()) == []


async def test_a_blob_over_the_limit_is_refused(http: aiohttp.ClientSession, served: Any) -> None:
    location = (await http.post("/v2/digits/blobs/uploads/")).headers["Location"]
    limit = served.registry.settings.max_blob_bytes
    refused = await http.patch(location, data=io.BytesIO(b"\0" * (limit + 1)))
    await error_of(refused, 413, "SIZE_INVALID")
    assert len(served.registry.uploads) == 0


# -- reading ---------------------------------------------------------------------------------------------------------


async def test_blobs_answer_ranges(http: aiohttp.ClientSession) -> None:
    await push_blob(http, DATA)
    path = f"/v2/digits/blobs/{DIGEST}"
    head = await http.head(path)
    assert (head.status, head.headers["Content-Length"]) == (200, str(len(DATA)))
    assert head.headers["Docker-Content-Digest"] == DIGEST
    part = await http.get(path, headers={"Range": "bytes=100-"})
    assert (part.status, await part.read()) == (206, DATA[100:])
    assert part.headers["Content-Range"] == f"bytes 100-{len(DATA) - 1}/{len(DATA)}"
    assert (await http.get(path, headers={"Range": f"bytes={len(DATA)}-"})).status == 416
    await error_of(await http.get(f"/v2/digits/blobs/{digest_of(b'?')}"), 404, "BLOB_UNKNOWN")
    await error_of(await http.get("/v2/digits/blobs/sha256:..etc"), 400, "DIGEST_INVALID")


async def test_referrers_are_listed_and_filtered(http: aiohttp.ClientSession, served: Any, make_layout: Any) -> None:
    layout = make_layout("v1")
    layout.attach(manifests.REPORT, b"<html></html>", title="report.html")
    with transfer.RegistryClient(served.url) as client:
        await asyncio.to_thread(transfer.push, client, layout)
    path = f"/v2/digits/referrers/{layout.digest}"
    listed = await http.get(path)
    assert listed.content_type == manifests.INDEX
    kinds = [entry["artifactType"] for entry in json.loads(await listed.read())["manifests"]]
    assert kinds == [manifests.CERTIFICATE, manifests.REPORT]
    filtered = await http.get(path, params={"artifactType": manifests.REPORT})
    assert filtered.headers["OCI-Filters-Applied"] == "artifactType"
    assert [e["artifactType"] for e in json.loads(await filtered.read())["manifests"]] == [manifests.REPORT]
    nobody = await http.get(f"/v2/digits/referrers/{digest_of(b'nobody')}")
    assert json.loads(await nobody.read())["manifests"] == []


async def test_listings_are_paged(http: aiohttp.ClientSession, served: Any, make_layout: Any, put: Any) -> None:
    layout = make_layout("v1")
    for tag in ("v1", "v2", "v3"):
        await put(served.registry, layout, tag)
    page = await http.get("/v2/digits/tags/list", params={"n": "2"})
    assert await page.json() == {"name": "digits", "tags": ["v1", "v2"]}
    assert page.headers["Link"] == '</v2/digits/tags/list?n=2&last=v2>; rel="next"'
    rest = await http.get("/v2/digits/tags/list", params={"n": "2", "last": "v2"})
    assert (await rest.json())["tags"] == ["v3"]
    assert "Link" not in rest.headers
    assert await (await http.get("/v2/_catalog")).json() == {"repositories": ["digits"]}
    await error_of(await http.get("/v2/_catalog", params={"n": "-1"}), 405, "UNSUPPORTED")


# -- manifests -------------------------------------------------------------------------------------------------------


async def test_a_generic_oci_artifact_is_stored_as_it_is(http: aiohttp.ClientSession, served: Any) -> None:
    await push_blob(http, b"{}")
    await push_blob(http, DATA)
    manifest = {
        "schemaVersion": 2,
        "mediaType": manifests.MANIFEST,
        "artifactType": "application/vnd.example",
        "config": {"mediaType": manifests.EMPTY_CONFIG, "digest": digest_of(b"{}"), "size": 2},
        "layers": [{"mediaType": "text/plain", "digest": DIGEST, "size": len(DATA)}],
        "extra": {"kept": True},
    }
    data = json.dumps(manifest, indent=3).encode()
    done = await http.put("/v2/some/thing/manifests/v1", data=data, headers={"Content-Type": manifests.MANIFEST})
    assert (done.status, done.headers["Docker-Content-Digest"]) == (201, digest_of(data))
    back = await http.get("/v2/some/thing/manifests/v1")
    assert await back.read() == data
    assert back.content_type == manifests.MANIFEST
    assert served.registry.models() == ()


async def test_a_manifest_needs_its_blobs_first_and_true_sizes(http: aiohttp.ClientSession) -> None:
    config = {"mediaType": manifests.EMPTY_CONFIG, "digest": digest_of(b"{}"), "size": 3}
    data = json.dumps({"schemaVersion": 2, "config": config, "layers": []}).encode()
    headers = {"Content-Type": manifests.MANIFEST}
    early = await http.put("/v2/a/manifests/v1", data=data, headers=headers)
    assert "push that first" in await error_of(early, 404, "MANIFEST_BLOB_UNKNOWN")
    await push_blob(http, b"{}")
    lying = await http.put("/v2/a/manifests/v1", data=data, headers=headers)
    assert "has 3 bytes; it has 2" in await error_of(lying, 400, "MANIFEST_INVALID")


async def test_a_certificate_for_other_digests_is_refused(http: aiohttp.ClientSession, served: Any, make_layout: Any,
                                                          put: Any) -> None:  # fmt: skip
    layout, other = make_layout("v1", certified=False), make_layout("v2")
    await put(served.registry, layout)
    content = other.referrers(manifests.CERTIFICATE)[0].content
    await push_blob(http, other.blobs.read(content.digest))
    await push_blob(http, b"{}")
    subject = {"mediaType": manifests.INDEX, "digest": layout.digest, "size": layout.blobs.size_bytes(layout.digest)}
    stolen = {
        "schemaVersion": 2,
        "artifactType": manifests.CERTIFICATE,
        "config": {"mediaType": manifests.EMPTY_CONFIG, "digest": digest_of(b"{}"), "size": 2},
        "layers": [msgspec.json.decode(msgspec.json.encode(content))],
        "subject": subject,
    }
    data = json.dumps(stolen).encode()
    refused = await http.put(
        f"/v2/digits/manifests/{digest_of(data)}", data=data, headers={"Content-Type": manifests.MANIFEST}
    )
    assert "issued for other digests" in await error_of(refused, 400, "MANIFEST_INVALID")
    assert served.registry.certificate_of(layout.digest) is None


@pytest.mark.parametrize(
    ("data", "media_type", "reference", "code"),
    [
        (b"not json", manifests.MANIFEST, "v1", "MANIFEST_INVALID"),
        (b"[]", manifests.INDEX, "v1", "MANIFEST_INVALID"),
        (b'{"schemaVersion":2,"manifests":[]}', "text/html", "v1", "MANIFEST_INVALID"),
        (b'{"schemaVersion":1,"manifests":[]}', manifests.INDEX, "v1", "MANIFEST_INVALID"),
        (b'{"schemaVersion":2,"manifests":[]}', manifests.INDEX, "sha256:" + "0" * 64, "DIGEST_INVALID"),
        (b'{"schemaVersion":2,"manifests":[]}', manifests.INDEX, "bad tag!", "MANIFEST_INVALID"),
        (b'{"schemaVersion":2,"mediaType":"text/plain","manifests":[]}', manifests.INDEX, "v1", "MANIFEST_INVALID"),
        (b'{"schemaVersion":2,"manifests":[{"mediaType":"m","digest":"../x","size":1}]}', manifests.INDEX, "v1",
         "MANIFEST_INVALID"),
        (b'{"schemaVersion":2,"manifests":[],"annotations":{"org.penstock.model":"a"}}', manifests.INDEX, "v1",
         "MANIFEST_INVALID"),
        (b'{"schemaVersion":2,"manifests":[],"padding":"' + b"x" * 5_000_000 + b'"}', manifests.INDEX, "v1",
         "SIZE_INVALID"),
    ],
)  # fmt: skip
async def test_bad_manifests_are_refused(
    http: aiohttp.ClientSession, served: Any, data: bytes, media_type: str, reference: str, code: str
) -> None:
    body = io.BytesIO(data)
    reply = await http.put(f"/v2/digits/manifests/{reference}", data=body, headers={"Content-Type": media_type})
    await error_of(reply, 413 if code == "SIZE_INVALID" else 400, code)
    assert served.registry.repositories() == []


async def test_names_of_the_inference_protocol_are_reserved(http: aiohttp.ClientSession, served: Any) -> None:
    for name in ("models", "health", "repository/x", "models/digits"):
        reply = await http.post(f"/v2/{name}/blobs/uploads/")
        assert "Open Inference Protocol" in await error_of(reply, 400, "NAME_INVALID")
    await error_of(await http.post("/v2/UPPER/blobs/uploads/"), 400, "NAME_INVALID")
    dotted = yarl.URL(f"{served.url}/v2/a/%2e%2e/b/blobs/uploads/", encoded=True)
    await error_of(await http.post(dotted), 400, "NAME_INVALID")


async def test_other_methods_and_paths(http: aiohttp.ClientSession) -> None:
    await error_of(await http.delete(f"/v2/digits/blobs/{DIGEST}"), 405, "UNSUPPORTED")
    assert (await http.get("/v2/digits/what")).status == 404
    await error_of(await http.get("/v2/digits/tags/list"), 404, "NAME_UNKNOWN")


async def test_deleting(http: aiohttp.ClientSession, served: Any, make_layout: Any, put: Any) -> None:
    first, second = make_layout("v1"), make_layout("v2")
    await put(served.registry, first)
    await put(served.registry, second)
    in_use = await http.delete(f"/v2/digits/manifests/{first.digest}")
    assert "the default version" in await error_of(in_use, 403, "DENIED")
    child = second.artifact().variants[0].digest
    assert "is part of" in await error_of(await http.delete(f"/v2/digits/manifests/{child}"), 403, "DENIED")
    assert (await http.delete("/v2/digits/manifests/v1")).status == 202
    assert [v.tag for v in served.registry.versions("digits")] == ["v2"]
    assert served.registry.resolve("digits").tag == ""
    assert (await http.delete(f"/v2/digits/manifests/{second.digest}")).status == 202
    await error_of(await http.get("/v2/digits/manifests/v2"), 404, "MANIFEST_UNKNOWN")
