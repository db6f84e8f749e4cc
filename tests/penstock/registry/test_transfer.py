"""The registry client against a registry that misbehaves: broken connections, lies, and servers that say "later"."""

from __future__ import annotations

import http.server
import json
import re
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

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
from penstock.registry.transfer import RegistryClient

DATA = bytes(range(256)) * 4096
DIGEST = digest_of(DATA)
BLOB = Descriptor(media_type="application/octet-stream", digest=DIGEST, size=len(DATA))


@dataclass
class Registry:
    """A small registry whose faults a test chooses."""

    blobs: dict[str, bytes] = field(default_factory=dict)
    uploads: dict[str, bytes] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)
    cut_after: list[int] = field(default_factory=list)  # bytes of each response or request until the line breaks
    statuses: list[tuple[int, dict[str, str]]] = field(default_factory=list)  # answered before anything else
    ignores_ranges: bool = False
    forgets_uploads: bool = False  # whenever it is asked how far one is
    redirect_to: str = ""
    url: str = ""
    credentials: list[str | None] = field(default_factory=list)


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    registry: Registry

    def log_message(self, format: str, *args: object) -> None:
        pass

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.registry.cut_after and body:
            self.wfile.write(body[: self.registry.cut_after.pop(0)])
            self.close_connection = True
            return
        self.wfile.write(body)

    def handle_any(self) -> None:
        registry = self.registry
        registry.log.append(f"{self.command} {self.path} {self.headers.get('Range') or ''}".strip())
        registry.credentials.append(self.headers.get("Authorization"))
        length = int(self.headers.get("Content-Length") or 0)
        if self.command == "PATCH" and registry.cut_after:
            received = self.rfile.read(registry.cut_after.pop(0))
            registry.uploads["u"] += received
            self.close_connection = True
            return
        body = self.rfile.read(length)
        if registry.statuses:
            status, headers = registry.statuses.pop(0)
            error = json.dumps({"errors": [{"code": "SOME_CODE", "message": "because"}]}).encode()
            self.answer(status, error, **headers)
            return
        path, _, query = self.path.partition("?")
        if match := re.fullmatch(r"/v2/m/blobs/(sha256:.*)", path):
            self.blob(match[1])
        elif path == "/v2/m/blobs/uploads/":
            registry.uploads["u"] = b""
            self.answer(202, Location="/upload/u?state=x")
        elif path == "/upload/u":
            self.upload(body, query)
        else:
            self.answer(404)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = handle_any  # noqa: N815  # names that http.server looks for

    def blob(self, digest: str) -> None:
        registry = self.registry
        if registry.redirect_to:
            self.answer(307, Location=registry.redirect_to + self.path)
            return
        if digest not in registry.blobs:
            self.answer(404, b'{"errors":[{"code":"BLOB_UNKNOWN","message":"no such blob"}]}')
            return
        data = registry.blobs[digest]
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        if asked is None or registry.ignores_ranges:
            self.answer(200, data)
        elif int(asked[1]) >= len(data):
            self.answer(416)
        else:
            self.answer(206, data[int(asked[1]) :])

    def upload(self, body: bytes, query: str) -> None:
        registry = self.registry
        if registry.forgets_uploads and self.command == "GET":
            registry.uploads.pop("u", None)
        have = registry.uploads.get("u")
        if have is None:
            self.answer(404)
        elif self.command == "GET":
            self.answer(204, Location="/upload/u?state=y", Range=f"0-{max(0, len(have) - 1)}")
        elif self.command == "PATCH":
            assert (self.headers["Content-Range"] or "").startswith(f"{len(have)}-")
            registry.uploads["u"] = have + body
            self.answer(202, Location="/upload/u?state=z", Range=f"0-{len(have) + len(body) - 1}")
        else:
            values = urllib.parse.parse_qs(query)
            digest = values["digest"][0]
            assert "state" in values, "the upload's own parameters must come back"
            if digest_of(have) != digest:
                self.answer(400, b'{"errors":[{"code":"DIGEST_INVALID","message":"no"}]}')
                return
            registry.blobs[digest] = registry.uploads.pop("u")
            self.answer(201)


def serve(registry: Registry) -> Callable[[], None]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("BoundHandler", (Handler,), {"registry": registry}))
    server.daemon_threads = True
    registry.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()

    def stop() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return stop


@pytest.fixture
def registry() -> Iterator[Registry]:
    made = Registry()
    stop = serve(made)
    yield made
    stop()


@pytest.fixture
def pauses() -> list[float]:
    return []


@pytest.fixture
def client(registry: Registry, pauses: list[float]) -> Iterator[RegistryClient]:
    with RegistryClient(registry.url, timeout_s=5, attempts=3, sleep=pauses.append) as made:
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


def test_redirects_in_a_circle_end(registry: Registry, client: RegistryClient) -> None:
    registry.redirect_to = registry.url
    with pytest.raises(Unavailable, match="redirects"):
        client.small_blob("m", DIGEST)
    assert len(registry.log) == 6


def test_nobody_there_is_unavailable_after_some_attempts(pauses: list[float]) -> None:
    message = r"cannot reach the registry at http://127\.0\.0\.1:1"
    nobody = RegistryClient("http://127.0.0.1:1", attempts=3, sleep=pauses.append)
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
