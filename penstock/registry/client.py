"""The calls of an OCI registry (distribution specification 1.1): manifests, blobs, tags, referrers.

Owns resuming and verifying: nothing is kept whose bytes do not hash to their digest. Whole artifacts are moved by
``penstock.registry.transfer``; HTTP itself is ``penstock.registry.connection``. Names are those below the namespace of
the registry's URL.
"""

from __future__ import annotations

import http.client
import re
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from penstock.artifact import manifests
from penstock.artifact.blobs import BlobStore, BlobWriter, check_digest, digest_of
from penstock.artifact.manifests import Descriptor
from penstock.errors import ArtifactError, DigestMismatch, NotFound, PenstockError, Unavailable
from penstock.registry.address import RegistryAddress, absolute, is_registry
from penstock.registry.connection import Connection, Limits, Reply
from penstock.registry.refusals import Retryable
from penstock.wire.tls import Tls

ReportBytes = Callable[[int], None]
"""Called with the number of bytes that were moved since the last call; negative when some have to be moved again."""

_MANIFESTS = f"{manifests.INDEX}, {manifests.MANIFEST}"
_CHUNK_BYTES = 4 * 1024 * 1024
_LAST_BYTE = re.compile(r"(?:bytes=)?0-(\d{1,18})")
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-\d+/(?:\d+|\*)")
_MAX_LISTED = 100_000
_NO_SUCH_RANGE = frozenset({416})
_NO_REFERRERS = frozenset({400, 404, 405, 406})
"""What registries say that know nothing of referrers; some take the path for another of theirs."""
_PATIENT = Limits()


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """A manifest as a registry served it; ``digest`` was computed from ``data``."""

    digest: str
    media_type: str
    data: bytes


class RegistryClient:
    """One registry. Not for several threads at a time; :meth:`cancel` alone may be called by others."""

    def __init__(
        self,
        url: str,
        *,
        user: str = "",
        token: str = "",
        tls: Tls | None = None,
        limits: Limits = _PATIENT,
        sleep: Callable[[float], None] | None = None,
    ) -> None:
        """
        Args:
            url: ``http://host:port`` or ``https://host/namespace`` (:mod:`penstock.registry.address`).
            user: whose password ``token`` is, for the registry or the token service that it names.
            token: without a user, sent as a bearer token to that host, and to none that it redirects to.
            tls: which authorities to trust over TLS; None for what the environment says.
            limits: how patient the client is, and how much it takes.
            sleep: waits between attempts; by default a sleep that :meth:`cancel` ends.

        Raises:
            InvalidInput: not such a URL.
        """
        self._connection = Connection(url, user=user, token=token, tls=tls, limits=limits, sleep=sleep)
        self.url = self._connection.url
        self._address = self._connection.address
        self._is_placed = self._address.below is None

    def __enter__(self) -> RegistryClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"RegistryClient({self.url!r})"

    def close(self) -> None:
        """Close the connection; the next call opens a new one."""
        self._connection.close()

    def cancel(self) -> None:
        """End the call that is under way in another thread, and every later one, with ``Cancelled``."""
        self._connection.cancel()

    def pause(self, failures: int) -> None:
        """Wait before something is tried again, the longer the more often it failed.

        Raises:
            Cancelled: :meth:`cancel` was called.
        """
        self._connection.wait(failures)

    # -- reading -----------------------------------------------------------------------------------------------------

    def repositories(self) -> list[str]:
        """Read the names of all repositories below the namespace, all pages of them.

        Raises:
            NotFound, PermissionDenied: the registry has no such list, as many that are not one's own.
            Unavailable: out of reach.
        """
        found = self._listing(f"{self._placed().api}/_catalog?n=1000", "repositories")
        return [name for name in map(self._address.local, found) if name]

    def tags(self, name: str) -> list[str]:
        """Read the tags of a repository, all pages of them.

        Raises:
            NotFound: no such repository. Unavailable: out of reach.
        """
        return self._listing(f"{self._at(name)}/tags/list?n=1000", "tags")

    def manifest(self, name: str, reference: str) -> Document:
        """Read a manifest by tag or digest and verify it.

        Raises:
            NotFound: no such name, tag or digest. DigestMismatch: other bytes than the digest names.
            TooLarge, Unavailable: it cannot be had.
        """
        path = f"{self._at(name)}/manifests/{reference}"
        try:
            reply = self._connection.call("GET", path, headers={"Accept": _MANIFESTS})
        except NotFound as error:  # a registry says "manifest unknown", and not which
            wanted = f"{name}@{reference}" if ":" in reference else f"{name}:{reference}"
            raise NotFound(f"{wanted}: {error.message}") from None
        digest = digest_of(reply.body)
        if ":" in reference:
            self._verified(reply.body, reference, f"{name}@{reference}")
        return Document(digest=digest, media_type=_media_type(reply), data=reply.body)

    def listed_referrers(self, name: str, digest: str, kind: str = "") -> list[Descriptor] | None:
        """Read the registry's own list of what refers to ``digest``, of artifact type ``kind`` if one is given.

        Returns:
            Descriptors in the registry's order, perhaps of other kinds as well; None where it keeps no such list
            (:func:`penstock.registry.referrers.find` knows what stands in for it).

        Raises:
            ArtifactError: no such list. TooLarge, Unavailable: it cannot be had.
        """
        query = f"?{urllib.parse.urlencode({'artifactType': kind})}" if kind else ""
        path = f"{self._at(name)}/referrers/{check_digest(digest)}{query}"
        found: list[Descriptor] = []
        while path and len(found) < _MAX_LISTED:
            reply = self._connection.call("GET", path, headers={"Accept": manifests.INDEX}, expected=_NO_REFERRERS)
            if reply.status in _NO_REFERRERS or _media_type(reply) != manifests.INDEX:
                return None
            page = manifests.decode_index(reply.body).manifests
            found += page
            path = self._next_page(path, reply) if page else ""
        return found

    def small_blob(self, name: str, digest: str) -> bytes:
        """Read a blob of at most ``max_document_bytes`` and verify it.

        Raises:
            NotFound, TooLarge, Unavailable: it cannot be had. DigestMismatch: other bytes than the digest names.
        """
        data = self._connection.call("GET", f"{self._at(name)}/blobs/{check_digest(digest)}").body
        return self._verified(data, digest, f"{name}@{digest}")

    def has_blob(self, name: str, digest: str) -> bool:
        """Ask whether a push may leave this blob out."""
        try:
            self._connection.call("HEAD", f"{self._at(name)}/blobs/{check_digest(digest)}")
        except NotFound:
            return False
        return True

    def fetch_blob(self, name: str, blob: Descriptor, store: BlobStore, report: ReportBytes = lambda _: None) -> Path:
        """Fetch a blob into ``store``, continuing an earlier attempt; what is there already is not fetched.

        Raises:
            NotFound: the registry has no such blob.
            DigestMismatch: it sent other bytes than the digest names.
            TooLarge: it sent more bytes than described.
            StorageError: the disk is full; what was written stays for the next time.
            Unavailable: ``attempts`` tries in a row brought nothing; what was written stays.
        """
        if store.has(blob.digest):
            report(blob.size)
            return store.path(blob.digest)
        with store.writer(blob.digest, limit_bytes=blob.size) as writer:
            if writer.offset > blob.size:  # cannot be a part of it: written by a bug, or by somebody else
                writer.restart()
            is_resumed = writer.offset > 0
            report(writer.offset)
            self._fetch_rest(name, blob, writer, report)
            try:
                return writer.commit()
            except DigestMismatch:
                if not is_resumed:
                    raise
        # the part that an earlier attempt left behind may have been damaged on this disk; it is dropped now, and the
        # registry gets one chance from the beginning
        report(-blob.size)
        return self.fetch_blob(name, blob, store, report)

    # -- pushing -----------------------------------------------------------------------------------------------------

    def push_manifest(self, name: str, reference: str, data: bytes, media_type: str) -> None:
        """Push a manifest under a tag or its digest.

        Raises:
            ArtifactError: refused by the registry, with its reason. Unavailable.
        """
        self._connection.call(
            "PUT", f"{self._at(name)}/manifests/{reference}", body=data, headers={"Content-Type": media_type}
        )

    def push_blob(self, name: str, digest: str, path: Path, report: ReportBytes = lambda _: None) -> None:
        """Upload a blob in chunks, continuing where the registry says it is after a broken connection.

        Raises:
            ArtifactError: refused by the registry. Unavailable after ``attempts`` tries without progress.
        """
        size = path.stat().st_size
        location = self._begin_upload(name)
        offset, failures = 0, 0
        with path.open("rb") as file:
            while offset < size:
                file.seek(offset)
                chunk = file.read(_CHUNK_BYTES)
                try:
                    location = self._push_chunk(location, offset, chunk)
                    reached = offset + len(chunk)
                except Retryable as broken:
                    failures += 1
                    self._connection.pause(failures, broken.last)
                    location, reached = self._where(name, location)
                else:
                    failures = 0
                report(reached - offset)
                offset = reached
        separator = "&" if "?" in location else "?"
        closing = f"{location}{separator}{urllib.parse.urlencode({'digest': digest})}"
        try:
            self._connection.call("PUT", closing, body=b"", headers={"Content-Type": "application/octet-stream"})
        except NotFound:
            # the reply to a PUT that had succeeded was lost, and the retry found no upload any more
            if not self.has_blob(name, digest):
                raise

    # -- inside ------------------------------------------------------------------------------------------------------

    def _at(self, name: str) -> str:
        address = self._placed()
        return f"{address.api}/{address.repository(name)}"

    def _placed(self) -> RegistryAddress:
        """Return where repositories are, after asking the host once where the URL's path may be two things."""
        below = self._address.below
        if not self._is_placed and below is not None:
            reply = self._connection.glance(f"{self._address.api}/")
            if not is_registry(reply.status, _media_type(reply)):
                self._address = below
        self._is_placed = True
        return self._address

    def _fetch_rest(self, name: str, blob: Descriptor, writer: BlobWriter, report: ReportBytes) -> None:
        """Write what is missing, in as many attempts as it takes while there is progress."""
        failures, furthest = 0, writer.offset
        while writer.offset < blob.size:
            try:
                self._fetch_some(name, blob, writer, report)
                last: PenstockError = Unavailable(
                    f"{self.url} ended blob {blob.digest} early: got {writer.offset} of {blob.size} bytes"
                )
            except Retryable as broken:
                last = broken.last
            if writer.offset < blob.size:
                # farther than ever: a registry whose blob is too short makes us begin again and again
                has_moved = writer.offset > furthest and self._connection.limits.attempts > 1
                furthest = max(furthest, writer.offset)
                failures = 0 if has_moved else failures + 1
                self._connection.pause(failures, last)

    def _fetch_some(self, name: str, blob: Descriptor, writer: BlobWriter, report: ReportBytes) -> None:
        headers = {"Range": f"bytes={writer.offset}-"} if writer.offset else {}
        path = f"{self._at(name)}/blobs/{check_digest(blob.digest)}"
        with self._connection.response("GET", path, None, headers, expected=_NO_SUCH_RANGE) as response:
            held = writer.offset
            if held and not _continues(response, held):
                report(-held)
                writer.restart()
            if response.status not in (200, 206) or (response.status == 206 and writer.offset < held):
                # 416: it has fewer bytes than we hold; 206: it sent another range than was asked for
                raise Retryable(Unavailable(f"{self.url} cannot continue blob {blob.digest} at byte {held}"))
            while chunk := response.read1(self._connection.limits.chunk_bytes):
                writer.write(chunk)
                report(len(chunk))
                self._connection.check()
            response.read()  # nothing is left, which lets the connection be used again

    def _begin_upload(self, name: str) -> str:
        reply = self._connection.call("POST", f"{self._at(name)}/blobs/uploads/", body=b"")
        return self._location(reply, f"{self._at(name)}/blobs/uploads/")

    def _push_chunk(self, location: str, offset: int, chunk: bytes) -> str:
        headers = {
            "Content-Type": "application/octet-stream",
            "Content-Range": f"{offset}-{offset + len(chunk) - 1}",
        }
        reply = self._connection.once("PATCH", location, chunk, headers)
        return self._location(reply, location)

    def _where(self, name: str, location: str) -> tuple[str, int]:
        """Ask where a broken upload stands: its location and how many bytes the registry has."""
        try:
            reply = self._connection.call("GET", location)
        except NotFound:
            return self._begin_upload(name), 0
        last = _LAST_BYTE.fullmatch(reply.headers.get("range", ""))
        # "0-0" is what registries say of an empty upload; a single byte sent twice is caught by Content-Range
        reached = int(last[1]) + 1 if last and int(last[1]) > 0 else 0
        return self._location(reply, location), reached

    def _verified(self, data: bytes, digest: str, what: str) -> bytes:
        """Check bytes against the digest that names them.

        Raises:
            DigestMismatch: ``data`` is not what ``digest`` names.
        """
        found = digest_of(data)
        if found != digest:
            raise DigestMismatch(f"{self.url} sent bytes that hash to {found} as {what}: corrupt or tampered with")
        return data

    def _location(self, reply: Reply, asked: str) -> str:
        return absolute(absolute(self.url, asked), reply.headers.get("location", asked))

    def _listing(self, path: str, field: str) -> list[str]:
        found: list[str] = []
        while path and len(found) < _MAX_LISTED:
            reply = self._connection.call("GET", path)
            try:
                listed = msgspec.json.decode(reply.body, type=dict[str, object]).get(field) or []
                page = msgspec.convert(listed, list[str])
            except msgspec.MsgspecError as error:
                raise ArtifactError(f"{self.url}{path}: not a listing: {error}") from error
            found += page
            path = self._next_page(path, reply) if page else ""
        return found

    def _next_page(self, path: str, reply: Reply) -> str:
        link = re.match(r'<([^>]+)>;\s*rel="?next', reply.headers.get("link", ""))
        return absolute(absolute(self.url, path), link[1]) if link else ""


def _media_type(reply: Reply) -> str:
    return reply.headers.get("content-type", "").partition(";")[0].strip()


def _continues(response: http.client.HTTPResponse, offset: int) -> bool:
    """Say whether a response goes on where we stopped; a plain 200 begins at byte 0 again."""
    found = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
    return response.status == 206 and found is not None and int(found[1]) == offset
