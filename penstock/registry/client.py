"""The calls of an OCI registry (distribution specification 1.1): manifests, blobs, tags, referrers.

Owns resuming and verifying: nothing is kept whose bytes do not hash to their digest. Whole artifacts are moved by
``penstock.registry.transfer``; HTTP itself is ``penstock.registry.connection``. Works against any registry that needs
no token dance.
"""

from __future__ import annotations

import http.client
import re
import time
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from penstock.artifact import manifests
from penstock.artifact.blobs import BlobStore, check_digest, digest_of
from penstock.artifact.manifests import Descriptor
from penstock.errors import ArtifactError, DigestMismatch, NotFound, PenstockError, Unavailable
from penstock.registry.connection import MAX_ERROR_BYTES, Reply, Retryable, Wire, lower_names

ReportBytes = Callable[[int], None]
"""Called with the number of bytes that were moved since the last call; negative when some have to be moved again."""

_MANIFESTS = f"{manifests.INDEX}, {manifests.MANIFEST}"
_CHUNK_BYTES = 4 * 1024 * 1024
_READ_BYTES = 256 * 1024
_LAST_BYTE = re.compile(r"(?:bytes=)?0-(\d{1,18})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """A manifest as a registry served it; ``digest`` was computed from ``data``."""

    digest: str
    media_type: str
    data: bytes


class RegistryClient:
    """One registry. Not for several threads at a time."""

    def __init__(
        self,
        url: str,
        *,
        token: str = "",
        timeout_s: float = 30.0,
        attempts: int = 5,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """
        Args:
            url: ``http://host:port`` or ``https://host``. ``token``: sent as a bearer token to that host only.
            timeout_s: longest silence of one connection.
            attempts: tries in a row without progress before giving up.

        Raises:
            InvalidInput: not such a URL.
        """
        self._wire = Wire(url, token=token, timeout_s=timeout_s, attempts=attempts, sleep=sleep)
        self.url = self._wire.url

    def __enter__(self) -> RegistryClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"RegistryClient({self.url!r})"

    def close(self) -> None:
        """Close the connection; the next call opens a new one."""
        self._wire.close()

    # -- reading -----------------------------------------------------------------------------------------------------

    def repositories(self) -> list[str]:
        """Names in the catalog, all pages.

        Raises:
            Unavailable: out of reach.
        """
        return self._listing("/v2/_catalog?n=1000", "repositories")

    def tags(self, name: str) -> list[str]:
        """Tags of a repository, all pages.

        Raises:
            NotFound: no such repository. Unavailable: out of reach.
        """
        return self._listing(f"/v2/{name}/tags/list?n=1000", "tags")

    def manifest(self, name: str, reference: str) -> Document:
        """A manifest by tag or digest, verified.

        Raises:
            NotFound: no such name, tag or digest. DigestMismatch: other bytes than asked for. Unavailable.
        """
        reply = self._wire.call("GET", f"/v2/{name}/manifests/{reference}", headers={"Accept": _MANIFESTS})
        digest = digest_of(reply.body)
        if ":" in reference and digest != reference:
            raise DigestMismatch(f"{self.url} sent bytes that hash to {digest} for {name}@{reference}")
        media_type = reply.headers.get("content-type", "").partition(";")[0].strip()
        return Document(digest=digest, media_type=media_type, data=reply.body)

    def referrers(self, name: str, digest: str) -> list[Descriptor]:
        """Manifests that refer to ``digest``; [] also from registries older than OCI 1.1."""
        try:
            reply = self._wire.call("GET", f"/v2/{name}/referrers/{digest}", headers={"Accept": manifests.INDEX})
        except NotFound:
            return []
        return manifests.decode_index(reply.body).manifests

    def small_blob(self, name: str, digest: str) -> bytes:
        """A blob of at most 4 MiB, verified.

        Raises:
            NotFound, DigestMismatch, TooLarge, Unavailable.
        """
        data = self._wire.call("GET", f"/v2/{name}/blobs/{check_digest(digest)}").body
        if digest_of(data) != digest:
            raise DigestMismatch(f"{self.url} sent bytes that hash to {digest_of(data)} for blob {digest}")
        return data

    def has_blob(self, name: str, digest: str) -> bool:
        """Whether a push may leave this blob out."""
        try:
            self._wire.call("HEAD", f"/v2/{name}/blobs/{check_digest(digest)}")
        except NotFound:
            return False
        return True

    def fetch_blob(self, name: str, blob: Descriptor, store: BlobStore, report: ReportBytes = lambda _: None) -> Path:
        """Fetch a blob into ``store``, continuing an earlier attempt; what is there already is not fetched.

        Raises:
            NotFound, DigestMismatch, StorageError; Unavailable after ``attempts`` tries without progress.
        """
        if store.has(blob.digest):
            report(blob.size)
            return store.path(blob.digest)
        with store.writer(blob.digest, limit_bytes=blob.size) as writer:
            already = writer.offset
        report(already)
        is_resumed, failures = already > 0, 0
        while True:
            before = already
            try:
                already = self._fetch_rest(name, blob, store, report)
                if already == blob.size:
                    with store.writer(blob.digest, limit_bytes=blob.size) as writer:
                        return writer.commit()
                last: PenstockError = Unavailable(f"{self.url} ended blob {blob.digest} after {already} bytes")
            except DigestMismatch as error:
                if not is_resumed:
                    raise
                # what an earlier attempt left behind was damaged, and is dropped now: once from the beginning
                is_resumed, already, last = False, 0, error
                report(-blob.size)
            except Retryable as broken:
                last = broken.last
                with store.writer(blob.digest, limit_bytes=blob.size) as writer:
                    already = writer.offset
            failures = 0 if already > before else failures + 1
            self._wire.pause(failures, last)

    # -- pushing -----------------------------------------------------------------------------------------------------

    def push_manifest(self, name: str, reference: str, data: bytes, media_type: str) -> None:
        """
        Raises:
            ArtifactError: refused by the registry, with its reason. Unavailable.
        """
        self._wire.call("PUT", f"/v2/{name}/manifests/{reference}", body=data, headers={"Content-Type": media_type})

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
                    self._wire.pause(failures, broken.last)
                    location, reached = self._where(name, location)
                else:
                    failures = 0
                report(reached - offset)
                offset = reached
        separator = "&" if "?" in location else "?"
        closing = f"{location}{separator}{urllib.parse.urlencode({'digest': digest})}"
        try:
            self._wire.call("PUT", closing, body=b"", headers={"Content-Type": "application/octet-stream"})
        except NotFound:
            # the reply to a PUT that had succeeded was lost, and the retry found no upload any more
            if not self.has_blob(name, digest):
                raise

    # -- inside ------------------------------------------------------------------------------------------------------

    def _fetch_rest(self, name: str, blob: Descriptor, store: BlobStore, report: ReportBytes) -> int:
        """Read from where the partial file ends; return how many bytes there are then."""
        writer = store.writer(blob.digest, limit_bytes=blob.size)
        with writer:
            if writer.offset >= blob.size:
                return writer.offset
            headers = {"Range": f"bytes={writer.offset}-"} if writer.offset else {}
            connection, response = self._wire.send("GET", f"/v2/{name}/blobs/{blob.digest}", None, headers)
            try:
                if response.status == 416 or (response.status == 200 and writer.offset):
                    # a registry without ranges, or a partial file it cannot continue: begin again
                    report(-writer.offset)
                    writer.discard()
                    raise Retryable(Unavailable(f"{self.url} cannot continue blob {blob.digest}"))
                if response.status not in (200, 206):
                    raise self._wire.error(response.status, lower_names(response), response.read(MAX_ERROR_BYTES))
                while chunk := response.read(_READ_BYTES):
                    writer.write(chunk)
                    report(len(chunk))
            except (OSError, http.client.HTTPException) as error:
                raise Retryable(self._wire.unreachable(error)) from error
            finally:
                self._wire.done(connection, response)
            return writer.offset

    def _begin_upload(self, name: str) -> str:
        reply = self._wire.call("POST", f"/v2/{name}/blobs/uploads/", body=b"")
        return self._location(reply, f"/v2/{name}/blobs/uploads/")

    def _push_chunk(self, location: str, offset: int, chunk: bytes) -> str:
        headers = {
            "Content-Type": "application/octet-stream",
            "Content-Range": f"{offset}-{offset + len(chunk) - 1}",
        }
        reply = self._wire.once("PATCH", location, chunk, headers)
        return self._location(reply, location)

    def _where(self, name: str, location: str) -> tuple[str, int]:
        """Where a broken upload stands: its location and how many bytes the registry has."""
        try:
            reply = self._wire.call("GET", location)
        except NotFound:
            return self._begin_upload(name), 0
        last = _LAST_BYTE.fullmatch(reply.headers.get("range", ""))
        # "0-0" is what registries say of an empty upload; a single byte sent twice is caught by Content-Range
        reached = int(last[1]) + 1 if last and int(last[1]) > 0 else 0
        return self._location(reply, location), reached

    def _location(self, reply: Reply, asked: str) -> str:
        return urllib.parse.urljoin(urllib.parse.urljoin(self.url, asked), reply.headers.get("location", asked))

    def _listing(self, path: str, field: str) -> list[str]:
        found: list[str] = []
        while path:
            reply = self._wire.call("GET", path)
            try:
                page = msgspec.json.decode(reply.body, type=dict[str, object]).get(field) or []
                found += msgspec.convert(page, list[str])
            except msgspec.MsgspecError as error:
                raise ArtifactError(f"{self.url}{path}: not a listing: {error}") from error
            link = re.match(r'<([^>]+)>;\s*rel="?next', reply.headers.get("link", ""))
            following = urllib.parse.urljoin(self.url + path, link[1]) if link else ""
            path = "" if following == path else following
        return found
