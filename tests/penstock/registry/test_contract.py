"""What every user of the registry client may rely on, whatever the registry does.

A command is patient: it tries again by itself. An agent tries once, since its update policy decides when to try again.
Both must keep the same bytes, refuse the same lies and be ended at once by a cancellation.
"""

from __future__ import annotations

import contextlib
import copy
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from penstock.artifact.blobs import BlobStore
from penstock.errors import Cancelled, DigestMismatch, NotFound, PenstockError, QueueFull, TooLarge, Unavailable
from penstock.registry.client import RegistryClient
from penstock.registry.connection import Limits
from tests.penstock.registry.server import BLOB, DATA, DIGEST, Registry, serve

PATIENT = Limits(read_timeout_s=5.0, attempts=4)
ONCE = Limits(read_timeout_s=5.0, attempts=1)
Misbehave = Callable[[Registry], None]


class Row(NamedTuple):
    """A misbehaviour of a registry that holds a blob of which ``held`` bytes are here already.

    Attributes:
        misbehave: sets it up.
        once: what a client that tries once is told at its first call; None when it has the blob then.
        patient: likewise for one that tries again.
        kept: bytes that are on disk after that first call of the client that tries once.
        held: bytes of the blob that an earlier process left.
    """

    misbehave: Misbehave
    once: type[PenstockError] | None = None
    patient: type[PenstockError] | None = None
    kept: int = 0
    held: int = 0


def nothing(_: Registry) -> None:
    pass


def setting(**faults: object) -> Misbehave:
    def misbehave(registry: Registry) -> None:
        for name, value in faults.items():
            setattr(registry, name, copy.copy(value))

    return misbehave


def holding(data: bytes) -> Misbehave:
    return setting(blobs={DIGEST: data})


ROWS = {
    "it is well": Row(nothing),
    "it continues a part": Row(nothing, held=1000),
    "it ignores ranges": Row(setting(ignores_ranges=True), held=1000),
    "it sends another range": Row(setting(shifts_ranges=[7]), once=Unavailable, held=1000),
    "it cannot continue the part": Row(setting(statuses_of_blobs=[416]), once=Unavailable, held=1000),
    "it refuses every range": Row(setting(statuses_of_blobs=[416] * 9), once=Unavailable, patient=Unavailable),
    "it cuts the line": Row(setting(cut_after=[300_000]), once=Unavailable, kept=300_000),
    "it cuts the line again": Row(setting(cut_after=[3000, 5000, 7000]), once=Unavailable, kept=3000),
    "it is overloaded": Row(setting(statuses_of_blobs=[429]), once=QueueFull, kept=1000, held=1000),
    "it fails for a moment": Row(setting(statuses_of_blobs=[500, 502]), once=Unavailable, kept=1000, held=1000),
    "it fails": Row(setting(statuses_of_blobs=[503] * 9), once=Unavailable, patient=Unavailable),
    "it does not have the blob": Row(setting(blobs={}), once=NotFound, patient=NotFound),
    "it sends other bytes": Row(holding(DATA[:-1] + b"?"), once=DigestMismatch, patient=DigestMismatch),
    "it sends too few bytes": Row(holding(DATA[:-9]), once=Unavailable, patient=Unavailable, kept=len(DATA) - 9),
    "it sends too many bytes": Row(holding(DATA + b"more"), once=TooLarge, patient=TooLarge),
    "it never ends": Row(setting(is_endless=True), once=TooLarge, patient=TooLarge),
    "it redirects in a circle": Row(lambda registry: setattr(registry, "redirect_to", registry.url),
                                    once=Unavailable, patient=Unavailable),
    "it closes idle connections": Row(setting(closes_idle=True)),
}  # fmt: skip


@pytest.fixture(params=["patient", "once"])
def is_patient(request: pytest.FixtureRequest) -> bool:
    return bool(request.param == "patient")


@pytest.fixture
def client(registry: Registry, is_patient: bool) -> Iterator[RegistryClient]:
    limits = PATIENT if is_patient else ONCE
    with RegistryClient(registry.url, limits=limits, sleep=lambda _: None) as made:
        yield made


@pytest.mark.parametrize("row", ROWS.values(), ids=[name.replace(" ", "-") for name in ROWS])
def test_a_blob_is_whole_or_refused(
    registry: Registry, client: RegistryClient, is_patient: bool, row: Row, tmp_path: Path
) -> None:
    registry.blobs[DIGEST] = DATA
    store = BlobStore(tmp_path)
    if row.held:
        with store.writer(DIGEST, limit_bytes=len(DATA)) as writer:
            writer.write(DATA[: row.held])
    row.misbehave(registry)
    moved: list[int] = []
    expected = row.patient if is_patient else row.once
    with contextlib.nullcontext() if expected is None else pytest.raises(expected):
        client.fetch_blob("m", BLOB, store, moved.append)
    if expected is None:
        assert store.read(DIGEST) == DATA
        assert sum(moved) == len(DATA)
    else:
        assert not store.has(DIGEST)
        assert is_patient or store.partial_bytes(DIGEST) == row.kept
    assert is_patient or registry.redirect_to or len(registry.log) == 1


@pytest.mark.parametrize("row", [row for row in ROWS.values() if row.patient is None and row.once is not None])
def test_a_client_that_tries_once_has_the_blob_after_some_calls(registry: Registry, row: Row, tmp_path: Path) -> None:
    registry.blobs[DIGEST] = DATA
    store = BlobStore(tmp_path)
    row.misbehave(registry)
    for _ in range(4):
        with contextlib.suppress(Unavailable, QueueFull), RegistryClient(registry.url, limits=ONCE) as client:
            client.fetch_blob("m", BLOB, store)
    assert store.read(DIGEST) == DATA


def test_a_part_that_was_damaged_here_is_fetched_from_the_beginning_at_once(
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


def test_a_part_that_is_longer_than_the_blob_is_dropped(
    registry: Registry, client: RegistryClient, tmp_path: Path
) -> None:
    registry.blobs[DIGEST] = DATA
    store = BlobStore(tmp_path)
    with store.writer(DIGEST, limit_bytes=10**9) as writer:
        writer.write(DATA + b"more")
    client.fetch_blob("m", BLOB, store)
    assert registry.log == [f"GET /v2/m/blobs/{DIGEST}"]


def test_how_long_to_wait_is_passed_on_or_waited(registry: Registry, tmp_path: Path, is_patient: bool) -> None:
    registry.blobs[DIGEST] = DATA
    registry.statuses = [(429, {"Retry_After": "7"})]
    pauses: list[float] = []
    limits = PATIENT if is_patient else ONCE
    with RegistryClient(registry.url, limits=limits, sleep=pauses.append) as client:
        if is_patient:
            client.fetch_blob("m", BLOB, BlobStore(tmp_path))
            assert pauses[0] >= 7
        else:
            with pytest.raises(QueueFull) as caught:
                client.fetch_blob("m", BLOB, BlobStore(tmp_path))
            assert caught.value.retry_after_s == 7.0
            assert pauses == []


def test_a_redirect_to_another_host_gets_no_credential(registry: Registry, tmp_path: Path, is_patient: bool) -> None:
    elsewhere = Registry(blobs={DIGEST: DATA})
    stop = serve(elsewhere)
    registry.redirect_to = elsewhere.url
    store = BlobStore(tmp_path)
    with RegistryClient(registry.url, token="secret", limits=PATIENT if is_patient else ONCE) as client:
        client.fetch_blob("m", BLOB, store)
    stop()
    assert store.read(DIGEST) == DATA
    assert registry.credentials == ["Bearer secret"]
    assert elsewhere.credentials == [None]


@pytest.mark.parametrize(
    "location",
    [
        "ftp://host/x",
        "http://host:99999/x",
        "http://[::1/x",
        "file:///etc/passwd",
        "http://host/\xe9",
        "http://h\xf6st/",
    ],
)
def test_a_redirect_to_what_is_no_address_is_refused(registry: Registry, client: RegistryClient, location: str) -> None:
    registry.statuses = [(307, {"Location": location})] * PATIENT.attempts
    with pytest.raises(Unavailable, match="redirects to"):
        client.small_blob("m", DIGEST)


def test_a_redirect_to_a_name_that_is_none_is_an_outage(registry: Registry, client: RegistryClient) -> None:
    registry.statuses = [(307, {"Location": f"http://{'a' * 70}.example/x"})] * PATIENT.attempts
    with pytest.raises(Unavailable, match="is no name of a host"):
        client.small_blob("m", DIGEST)


def test_a_document_that_is_cut_short_is_an_outage_and_no_lie(
    registry: Registry, client: RegistryClient, is_patient: bool
) -> None:
    registry.blobs[DIGEST] = DATA
    registry.cut_after = [1000]
    with contextlib.nullcontext() if is_patient else pytest.raises(Unavailable, match="bytes early"):
        assert client.small_blob("m", DIGEST) == DATA


def test_a_document_over_the_limit_is_not_read_to_its_end(registry: Registry, is_patient: bool) -> None:
    registry.is_endless = True
    registry.blobs[DIGEST] = DATA
    limits = Limits(attempts=3 if is_patient else 1, max_document_bytes=50_000)
    with RegistryClient(registry.url, limits=limits) as client, pytest.raises(TooLarge, match="50000 bytes"):
        client.small_blob("m", DIGEST)
    assert len(registry.log) == 1


def test_a_silent_registry_is_given_up_and_what_came_is_kept(
    registry: Registry, tmp_path: Path, is_patient: bool
) -> None:
    registry.blobs[DIGEST] = DATA
    registry.stall_after = [5000, 0]
    store = BlobStore(tmp_path)
    # on a busy machine a registry may seem silent before it has begun; it does not seem so twenty times in a row
    limits = Limits(read_timeout_s=0.1, attempts=20 if is_patient else 1)
    with RegistryClient(registry.url, limits=limits, sleep=lambda _: None) as client:
        if is_patient:
            client.fetch_blob("m", BLOB, store)
            assert store.read(DIGEST) == DATA
        else:
            with pytest.raises(Unavailable, match="timed out"):
                client.fetch_blob("m", BLOB, store)
            assert store.partial_bytes(DIGEST) in (0, 5000)


def test_a_silent_registry_does_not_hold_up_a_cancellation(
    registry: Registry, client: RegistryClient, tmp_path: Path
) -> None:
    registry.blobs[DIGEST] = DATA
    registry.stall_after = [5000]
    store = BlobStore(tmp_path)
    with cancelled_by(registry.stalls, client), pytest.raises(Cancelled):
        client.fetch_blob("m", BLOB, store)
    assert store.partial_bytes(DIGEST) in (0, 5000)
    with pytest.raises(Cancelled):
        client.fetch_blob("m", BLOB, store)


def test_over_tls_a_kept_connection_is_used_again_and_a_cancellation_is_not_held_up(
    tls_registry: Registry, tmp_path: Path
) -> None:
    tls_registry.blobs[DIGEST] = DATA
    store = BlobStore(tmp_path)
    with RegistryClient(tls_registry.url, limits=ONCE) as client:
        assert client.small_blob("m", DIGEST) == DATA
        tls_registry.stall_after = [5000]
        with cancelled_by(tls_registry.stalls, client), pytest.raises(Cancelled):
            client.fetch_blob("m", BLOB, store)
    assert not store.has(DIGEST)
    assert len(tls_registry.connections) == 1


def test_a_certificate_that_is_not_trusted_is_refused(tls_registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    with (
        RegistryClient(tls_registry.url, limits=ONCE) as client,
        pytest.raises(Unavailable, match="its certificate is not to be trusted here"),
    ):
        client.small_blob("m", DIGEST)


def test_a_pause_does_not_hold_up_a_cancellation(registry: Registry) -> None:
    registry.statuses = [(503, {"Retry_After": "60"})] * 9
    pauses = threading.Event()
    with RegistryClient(registry.url, limits=PATIENT) as client:
        sleep = client._connection._sleep
        client._connection._sleep = lambda delay_s: (pauses.set(), sleep(delay_s))[1]
        with cancelled_by(pauses, client), pytest.raises(Cancelled):
            client.tags("m")


def test_an_address_that_does_not_answer_does_not_hold_up_a_cancellation() -> None:
    """A full queue of connections: the operating system drops what asks for one more."""
    with socket.socket() as full, contextlib.ExitStack() as stack:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                waiting.connect(full.getsockname())
        begun = threading.Event()
        url = f"http://127.0.0.1:{full.getsockname()[1]}"
        client = stack.enter_context(RegistryClient(url, limits=ONCE))
        watch = client._connection._interrupt.watch
        client._connection._interrupt.watch = lambda sock: (watch(sock), begun.set())[0]  # type: ignore[method-assign]
        with cancelled_by(begun, client), pytest.raises(Cancelled):
            client.tags("m")


@contextlib.contextmanager
def cancelled_by(event: threading.Event, client: RegistryClient) -> Iterator[None]:
    """Cancel ``client`` from another thread when ``event`` is set."""
    thread = threading.Thread(target=lambda: event.wait(30) and client.cancel())
    thread.start()
    yield
    thread.join()
