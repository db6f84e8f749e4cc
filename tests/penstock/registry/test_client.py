"""The registry client: pushing, statuses, redirects, and what it does in several attempts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from penstock.artifact import manifests
from penstock.artifact.blobs import BlobStore, digest_of
from penstock.artifact.manifests import Descriptor
from penstock.errors import (
    ArtifactError,
    Conflict,
    DigestMismatch,
    InvalidInput,
    NotFound,
    PermissionDenied,
    QueueFull,
    StorageError,
    TooLarge,
    Unauthenticated,
    Unavailable,
)
from penstock.registry import referrers
from penstock.registry.client import RegistryClient
from penstock.registry.connection import Limits
from tests.penstock.registry.server import BLOB, DATA, DIGEST, Registry, serve


@pytest.fixture
def client(registry: Registry, pauses: list[float]) -> Iterator[RegistryClient]:
    with RegistryClient(registry.url, limits=Limits(read_timeout_s=5, attempts=3), sleep=pauses.append) as made:
        yield made


def test_a_fetch_continues_where_the_line_broke(registry: Registry, client: RegistryClient, tmp_path: Path) -> None:
    registry.blobs[DIGEST] = DATA
    registry.cut_after = [300_000, 300_000]
    moved: list[int] = []
    path = client.fetch_blob("m", BLOB, BlobStore(tmp_path), moved.append)
    assert path.read_bytes() == DATA
    assert sum(moved) == len(DATA)
    ranges = [int(entry.rpartition("=")[2].rstrip("-")) for entry in registry.log if "bytes=" in entry]
    assert ranges == sorted(ranges)
    assert len(ranges) == 2
    assert ranges[0] > 0


def test_a_fetch_continues_what_an_earlier_process_left(
    registry: Registry, client: RegistryClient, tmp_path: Path
) -> None:
    registry.blobs[DIGEST] = DATA
    store = BlobStore(tmp_path)
    with store.writer(DIGEST, limit_bytes=len(DATA)) as writer:
        writer.write(DATA[:1000])
    client.fetch_blob("m", BLOB, store)
    assert registry.log == [f"GET /v2/m/blobs/{DIGEST} bytes=1000-"]
    assert store.read(DIGEST) == DATA


def test_a_damaged_partial_file_is_dropped_and_fetched_once_more(
    registry: Registry, client: RegistryClient, tmp_path: Path
) -> None:
    registry.blobs[DIGEST] = DATA
    store = BlobStore(tmp_path)
    with store.writer(DIGEST, limit_bytes=len(DATA)) as writer:
        writer.write(b"\xff" * 1000)
    moved: list[int] = []
    client.fetch_blob("m", BLOB, store, moved.append)
    assert store.read(DIGEST) == DATA
    assert sum(moved) == len(DATA)


def test_a_complete_partial_file_is_published_without_a_request(
    registry: Registry, client: RegistryClient, tmp_path: Path
) -> None:
    store = BlobStore(tmp_path)
    with store.writer(DIGEST, limit_bytes=len(DATA)) as writer:
        writer.write(DATA)
    client.fetch_blob("m", BLOB, store)
    assert store.read(DIGEST) == DATA
    assert registry.log == []


def test_a_registry_without_ranges_is_fetched_from_the_beginning(
    registry: Registry, client: RegistryClient, tmp_path: Path
) -> None:
    registry.blobs[DIGEST] = DATA
    registry.ignores_ranges = True
    registry.cut_after = [1000]
    client.fetch_blob("m", BLOB, BlobStore(tmp_path))
    assert BlobStore(tmp_path).read(DIGEST) == DATA


def test_other_bytes_than_named_are_never_kept(registry: Registry, client: RegistryClient, tmp_path: Path) -> None:
    registry.blobs[DIGEST] = DATA[:-1] + b"?"
    store = BlobStore(tmp_path)
    with pytest.raises(DigestMismatch):
        client.fetch_blob("m", BLOB, store)
    assert not store.has(DIGEST)
    assert list((tmp_path / "partial").iterdir()) == []


def test_more_bytes_than_described_are_refused(registry: Registry, client: RegistryClient, tmp_path: Path) -> None:
    registry.blobs[DIGEST] = DATA + b"more"
    with pytest.raises(TooLarge):
        client.fetch_blob("m", BLOB, BlobStore(tmp_path))


def test_a_blob_that_ends_early_for_ever_is_given_up(
    registry: Registry, client: RegistryClient, tmp_path: Path, pauses: list[float]
) -> None:
    registry.blobs[DIGEST] = DATA
    registry.cut_after = [1000, 0, 0, 0]
    with pytest.raises(Unavailable):
        client.fetch_blob("m", BLOB, BlobStore(tmp_path))
    assert [pause > 0 for pause in pauses] == [False, True, True]


def test_a_push_continues_where_the_registry_is(registry: Registry, client: RegistryClient, tmp_path: Path) -> None:
    file = tmp_path / "blob"
    file.write_bytes(DATA)
    registry.cut_after = [300_000, 0]
    moved: list[int] = []
    client.push_blob("m", DIGEST, file, moved.append)
    assert registry.blobs[DIGEST] == DATA
    assert sum(moved) == len(DATA)


def test_an_upload_that_the_registry_forgot_begins_again(
    registry: Registry, client: RegistryClient, tmp_path: Path
) -> None:
    file = tmp_path / "blob"
    file.write_bytes(DATA)
    registry.cut_after = [1000]
    registry.forgets_uploads = True
    moved: list[int] = []
    client.push_blob("m", DIGEST, file, moved.append)
    assert registry.blobs[DIGEST] == DATA
    assert sum(moved) == len(DATA)


def test_an_empty_blob_is_pushed_and_fetched(registry: Registry, client: RegistryClient, tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(b"")
    digest = digest_of(b"")
    client.push_blob("m", digest, tmp_path / "blob")
    assert client.has_blob("m", digest)
    store = BlobStore(tmp_path / "store")
    client.fetch_blob("m", Descriptor(media_type="m", digest=digest, size=0), store)
    assert store.read(digest) == b""


def test_later_is_honoured_and_tried_again(registry: Registry, client: RegistryClient, pauses: list[float]) -> None:
    registry.blobs[DIGEST] = DATA
    registry.statuses = [(503, {"Retry_After": "7"}), (429, {})]
    assert client.small_blob("m", DIGEST) == DATA
    assert pauses[0] >= 7
    assert pauses[1] < 7


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, ArtifactError), (401, Unauthenticated), (403, PermissionDenied), (404, NotFound), (409, Conflict),
        (413, TooLarge), (429, QueueFull), (500, Unavailable), (507, StorageError),
    ],
)  # fmt: skip
def test_statuses_become_errors_with_the_registrys_reason(
    registry: Registry, client: RegistryClient, status: int, kind: type[Exception]
) -> None:
    registry.statuses = [(status, {})] * 3
    with pytest.raises(kind, match="SOME_CODE: because"):
        client.manifest("m", "v1")


def test_a_redirect_is_followed_without_the_credential(registry: Registry, tmp_path: Path) -> None:
    elsewhere = Registry(blobs={DIGEST: DATA})
    stop = serve(elsewhere)
    registry.redirect_to = elsewhere.url
    with RegistryClient(registry.url, token="secret") as client:
        assert client.small_blob("m", DIGEST) == DATA
    stop()
    assert registry.credentials == ["Bearer secret"]
    assert elsewhere.credentials == [None]


def test_a_challenge_from_where_the_registry_redirects_to_is_not_answered(registry: Registry) -> None:
    elsewhere = Registry(blobs={DIGEST: DATA})
    stop = serve(elsewhere)
    registry.redirect_to = elsewhere.url
    challenge = {"WWW_Authenticate": f'Bearer realm="{elsewhere.url}/token",service="s"'}
    elsewhere.statuses = [(401, challenge)]
    with RegistryClient(registry.url, user="acme", token="secret") as client, pytest.raises(Unauthenticated):
        client.small_blob("m", DIGEST)
    stop()
    assert elsewhere.credentials == [None]


@pytest.mark.parametrize("status", [302, 307])
def test_a_service_of_tokens_that_redirects_is_not_followed(registry: Registry, status: int) -> None:
    service, elsewhere = Registry(), Registry()
    stops = [serve(service), serve(elsewhere)]
    registry.statuses = [(401, {"WWW_Authenticate": f'Bearer realm="{service.url}/token",service="s"'})]
    service.statuses = [(status, {"Location": f"{elsewhere.url}/token"})]
    with (
        RegistryClient(registry.url, user="acme", token="secret") as client,
        pytest.raises(Unauthenticated, match=f"which answered {status}"),
    ):
        client.small_blob("m", DIGEST)
    for stop in stops:
        stop()
    assert (len(service.log), elsewhere.log) == (1, [])


def test_redirects_in_a_circle_end(registry: Registry, client: RegistryClient) -> None:
    registry.redirect_to = registry.url
    with pytest.raises(Unavailable, match="redirects"):
        client.small_blob("m", DIGEST)
    assert len(registry.log) == 6


def test_nobody_there_is_unavailable_after_some_attempts(pauses: list[float]) -> None:
    message = r"cannot reach the registry at http://127\.0\.0\.1:1"
    nobody = RegistryClient("http://127.0.0.1:1", limits=Limits(attempts=3), sleep=pauses.append)
    with nobody as client, pytest.raises(Unavailable, match=message):
        client.manifest("m", "v1")
    assert len(pauses) == 2


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://host", "http://", ""])
def test_what_is_not_a_url_is_refused(url: str) -> None:
    with pytest.raises(InvalidInput, match="is not a URL"):
        RegistryClient(url)


def test_a_digest_that_is_a_path_never_reaches_the_wire(registry: Registry, client: RegistryClient) -> None:
    with pytest.raises(ArtifactError):
        client.small_blob("m", "sha256:../../etc/passwd")
    assert registry.log == []


def test_a_push_ends_with_an_error_where_nothing_is_listed(registry: Registry, pauses: list[float]) -> None:
    registry.forgets_tags = True
    with RegistryClient(registry.url, limits=Limits(attempts=1), sleep=pauses.append) as client:
        attached = msgspec.structs.replace(BLOB, artifact_type=manifests.CERTIFICATE)
        with pytest.raises(ArtifactError, match="does not list it afterwards"):
            referrers.ensure_listed(client, "m", DIGEST, [attached])
    assert len(pauses) == 4
