"""The OCI distribution protocol (specification 1.1) under ``/v2/``: decode, call the registry, encode.

Push, pull, resume, ranges, referrers and listings, as skopeo, oras and our own client speak them. The Open Inference
Protocol shares ``/v2`` and goes first.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, TypedDict
from urllib.parse import urlencode

import msgspec

from cloud_core.registry import oci_errors
from cloud_core.registry.manifest_rules import check_reference_digest, check_repository
from cloud_core.registry.oci_errors import Refused
from cloud_core.registry.registry import Registry
from cloud_core.registry.uploads import Upload
from cloud_core.state import to_its_end
from cloud_core.tenants.sight import check_name, may_see
from penstock.artifact import manifests
from penstock.errors import DigestMismatch, NotFound, PenstockError, Unavailable
from penstock.http.operations import BYTES, JSON, Operation, Raw
from penstock.http.routes import MethodNotAllowed, Reply, Request, Route, UnknownEncoding, refusal
from penstock.policy.access import Action

_CHUNK_BYTES = 1024 * 1024
_MAX_PAGE = 1000

_STATUS: Mapping[str, int] = {
    oci_errors.BLOB_UNKNOWN: 404,
    oci_errors.BLOB_UPLOAD_INVALID: 400,
    oci_errors.BLOB_UPLOAD_UNKNOWN: 404,
    oci_errors.DENIED: 403,
    oci_errors.DIGEST_INVALID: 400,
    oci_errors.MANIFEST_BLOB_UNKNOWN: 404,
    oci_errors.MANIFEST_INVALID: 400,
    oci_errors.MANIFEST_UNKNOWN: 404,
    oci_errors.NAME_INVALID: 400,
    oci_errors.NAME_UNKNOWN: 404,
    oci_errors.RANGE_INVALID: 416,
    oci_errors.SIZE_INVALID: 413,
    oci_errors.TOOMANYREQUESTS: 429,
    oci_errors.UNSUPPORTED: 405,
}
_CODES: Mapping[str, str] = {"unauthenticated": "UNAUTHORIZED", "permission-denied": oci_errors.DENIED}
_Handler = Callable[..., Awaitable[Reply]]


class OciRefusal(TypedDict):
    """Why a request of the distribution protocol was not answered."""

    errors: list[dict[str, Any]]


def _says(summary: str, status: int = 200, **more: Any) -> Operation:
    return Operation(summary=summary, group="registry", status=status, refusal=OciRefusal, **more)


def _listing(summary: str) -> Operation:
    pages = {"n": "How many entries a page has.", "last": "The entry before the first of the page."}
    return _says(summary, answers={JSON: dict[str, Any]}, query=pages)


_PIECE = {BYTES: Raw("Bytes of a blob.")}
_MANIFEST = {manifests.INDEX: dict[str, Any], manifests.MANIFEST: dict[str, Any]}
_BEGIN = _says(
    "Begin the upload of a blob",
    202,
    asks=_PIECE,
    needs_body=False,
    query={"digest": "Of a blob that is sent whole.", "mount": "Digest of a blob that is here, perhaps."},
    also={201: "The blob is here."},
)
_FINISH = _says(
    "End an upload", 201, asks=_PIECE, needs_body=False, query={"digest": "What the blob's digest has to be."}
)
_BLOB = _says("Fetch a blob, or ranges of it", answers=_PIECE, also={206: "The range that was asked for."})
_REFERRERS = _says(
    "List what refers to a manifest",
    answers={manifests.INDEX: dict[str, Any]},
    query={"artifactType": "The only type that is listed."},
)
_CONTENT_RANGE = re.compile(r"(?:bytes )?(\d{1,18})-(\d{1,18})(?:/\S+)?")


class OciApi:
    """Answers requests of the distribution protocol from one registry."""

    def __init__(
        self,
        registry: Registry,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        is_draining: Callable[[], bool] = lambda: False,
    ) -> None:
        """``is_draining``: nothing new is taken in while it says so."""
        self._registry, self._now, self._is_draining = registry, now, is_draining

    def routes(self) -> list[Route]:
        """List the rows of the protocol, errors in its own words. ``GET /v2/`` is a row of the other protocol."""
        manifest, blob = "/v2/{name*}/manifests/{reference}", "/v2/{name*}/blobs/{digest}"
        uploads, upload = "/v2/{name*}/blobs/uploads", "/v2/{name*}/blobs/uploads/{upload}"
        rows: list[tuple[str, str, _Handler, Operation]] = [
            ("GET", "/v2/_catalog", self._catalog, _listing("List repositories")),
            ("GET", "/v2/{name*}/tags/list", self._tags, _listing("List the tags of a repository")),
            ("GET", manifest, self._get_manifest, _says("Fetch a manifest, by tag or digest", answers=_MANIFEST)),
            (
                "PUT",
                manifest,
                self._put_manifest,
                _says("Put a manifest", 201, asks=_MANIFEST),
            ),
            ("DELETE", manifest, self._delete_manifest, _says("Remove a tag or a manifest", 202)),
            ("POST", uploads, self._begin_upload, _BEGIN),
            ("POST", f"{uploads}/", self._begin_upload, _BEGIN),
            ("GET", upload, self._upload_status, _says("Say how much of an upload is here", 204)),
            ("PATCH", upload, self._append_upload, _says("Append a piece to an upload", 202, asks=_PIECE)),
            ("PUT", upload, self._finish_upload, _FINISH),
            ("DELETE", upload, self._cancel_upload, _says("Give an upload up", 204)),
            ("GET", blob, self._get_blob, _BLOB),
            ("GET", "/v2/{name*}/referrers/{digest}", self._referrers, _REFERRERS),
        ]
        return [self._route(*row) for row in rows]

    def _route(self, method: str, pattern: str, handler: _Handler, says: Operation) -> Route:
        async def handle(request: Request) -> Reply:
            try:
                if method != "GET" and self._is_draining():
                    raise Unavailable("the server is shutting down", retry_after_s=1.0)
                if "name" in request.names:
                    check_repository(request.names["name"])
                    check_name(request.names["name"])
                return await handler(request, **request.names)
            except Refused as error:
                return _refused(error)

        return Route(method, pattern, handle, Action.PULL if method == "GET" else Action.PUSH, _refusal, says)

    # -- reading -----------------------------------------------------------------------------------------------------

    async def _catalog(self, request: Request) -> Reply:
        names, headers = _page(request, [name for name in self._registry.repositories() if may_see(name)])
        return _json({"repositories": names}, headers=headers)

    async def _tags(self, request: Request, name: str) -> Reply:
        tags, headers = _page(request, self._registry.tags(name))
        return _json({"name": name, "tags": tags}, headers=headers)

    async def _get_manifest(self, request: Request, name: str, reference: str) -> Reply:
        row = self._registry.manifest(name, reference)
        data = await asyncio.to_thread(self._registry.store.read, row.digest)
        etag = f'"{row.digest}"'
        headers = {"Docker-Content-Digest": row.digest, "ETag": etag, "Content-Type": row.media_type}
        return Reply(body=data, headers=headers)

    async def _referrers(self, request: Request, name: str, digest: str) -> Reply:
        kind = request.query.get("artifactType", "")
        found = self._registry.referrers(name, digest, kind)
        index = manifests.Index(schema_version=2, media_type=manifests.INDEX, manifests=found)
        headers = {"OCI-Filters-Applied": "artifactType"} if kind else {}
        return Reply(body=msgspec.json.encode(index), headers={**headers, "Content-Type": manifests.INDEX})

    async def _get_blob(self, request: Request, name: str, digest: str) -> Reply:
        check_reference_digest(digest)
        if request.method == "HEAD":
            self._registry.garbage.has_for_push(digest)
        try:
            path = self._registry.blob_path(digest)
        except NotFound:
            raise Refused(oci_errors.BLOB_UNKNOWN, f"no blob {digest} in {name}", detail=digest) from None
        headers = {"Docker-Content-Digest": digest, "Content-Type": "application/octet-stream"}
        return Reply(file=path, headers=headers)

    # -- pushing -----------------------------------------------------------------------------------------------------

    async def _put_manifest(self, request: Request, name: str, reference: str) -> Reply:
        data = await self._small_body(request)
        row = await self._registry.put_manifest(name, reference, _media_type(request), data)
        headers = {"Location": f"/v2/{name}/manifests/{row.digest}", "Docker-Content-Digest": row.digest}
        if row.subject:
            headers["OCI-Subject"] = row.subject
        return Reply(status=201, headers=headers)

    async def _delete_manifest(self, request: Request, name: str, reference: str) -> Reply:
        await self._registry.delete_manifest(name, reference)
        return Reply(status=202)

    async def _begin_upload(self, request: Request, name: str) -> Reply:
        mount = request.query.get("mount", "")
        if mount and self._registry.garbage.has_for_push(check_reference_digest(mount)):
            return _created(name, mount)  # blobs are shared by all repositories, so "from" does not matter
        upload = self._registry.uploads.begin(self._now())
        if "digest" not in request.query:
            return _accepted(name, upload)
        return await self._finish_upload(request, name, upload.id)

    async def _upload_status(self, request: Request, name: str, upload: str) -> Reply:
        return _accepted(name, self._registry.uploads.get(upload), status=204)

    async def _append_upload(self, request: Request, name: str, upload: str) -> Reply:
        with self._writing(upload) as session:
            _check_continues(request, session)
            await self._receive(request, session)
        return _accepted(name, session)

    async def _finish_upload(self, request: Request, name: str, upload: str) -> Reply:
        with self._writing(upload) as session:
            digest = check_reference_digest(request.query.get("digest", ""))
            _check_continues(request, session)
            await self._receive(request, session)
            await to_its_end(asyncio.to_thread(self._registry.uploads.finish, session, digest, self._now()))
        return _created(name, digest)

    async def _cancel_upload(self, request: Request, name: str, upload: str) -> Reply:
        with self._writing(upload) as session:
            self._registry.uploads.cancel(session)
        return Reply(status=204)

    async def _receive(self, request: Request, session: Upload) -> None:
        async for chunk in request.body.chunks(_CHUNK_BYTES):
            await to_its_end(asyncio.to_thread(self._registry.uploads.append, session, chunk, self._now()))

    @contextmanager
    def _writing(self, upload: str) -> Iterator[Upload]:
        session = self._registry.uploads.get(upload)
        if session.is_busy:
            raise Refused(oci_errors.BLOB_UPLOAD_INVALID, "another request is writing to this upload")
        session.is_busy = True
        try:
            yield session
        finally:
            session.is_busy = False

    async def _small_body(self, request: Request) -> bytes:
        limit = self._registry.settings.max_manifest_bytes
        data = bytearray()
        async for chunk in request.body.chunks(_CHUNK_BYTES):
            data += chunk
            if len(data) > limit:
                raise Refused(oci_errors.SIZE_INVALID, f"the manifest has more than the {limit} bytes allowed")
        return bytes(data)


def _media_type(request: Request) -> str:
    return request.headers.get("Content-Type", "application/octet-stream").partition(";")[0].strip().lower()


def _check_continues(request: Request, session: Upload) -> None:
    """Content-Range is optional; where it is given, the chunk must begin where the last one ended."""
    given = request.headers.get("Content-Range")
    if given is None:
        return
    match = _CONTENT_RANGE.fullmatch(given)
    if match is None or int(match[1]) != session.offset:
        raise Refused(
            oci_errors.RANGE_INVALID,
            f"Content-Range {given[:60]!r} does not continue this upload; {session.offset} bytes are here",
            detail=_range(session),
        )


def _range(session: Upload) -> str:
    return f"0-{max(0, session.offset - 1)}"


def _accepted(name: str, session: Upload, status: int = 202) -> Reply:
    headers = {
        "Location": f"/v2/{name}/blobs/uploads/{session.id}",
        "Range": _range(session),
        "Docker-Upload-UUID": session.id,
        "OCI-Chunk-Min-Length": "1",
    }
    return Reply(status=status, headers=headers)


def _created(name: str, digest: str) -> Reply:
    headers = {"Location": f"/v2/{name}/blobs/{digest}", "Docker-Content-Digest": digest}
    return Reply(status=201, headers=headers)


def _page(request: Request, names: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Cut one page out of a sorted listing by the ``n`` and ``last`` parameters, and the Link to the next."""
    text = request.query.get("n", str(_MAX_PAGE))
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise Refused(oci_errors.UNSUPPORTED, f"n={text[:20]!r} is not a number of entries")
    count, last = min(int(text), _MAX_PAGE), request.query.get("last", "")
    rest = [name for name in names if name > last]
    page = rest[:count]
    if len(rest) > len(page) and page:
        query = urlencode({"n": count, "last": page[-1]})
        return page, {"Link": f'<{request.path}?{query}>; rel="next"'}
    return page, {}


def _refused(error: Refused) -> Reply:
    headers = {"Range": error.detail} if error.oci_code == oci_errors.RANGE_INVALID else {}
    if error.oci_code == oci_errors.TOOMANYREQUESTS:
        headers["Retry-After"] = "5"
    return _error(_STATUS[error.oci_code], error.oci_code, error.message, detail=error.detail, headers=headers)


def _refusal(error: PenstockError) -> Reply:
    """Say an error of ours in the words of this protocol."""
    reply = refusal(error)
    if isinstance(error, DigestMismatch):  # of what is stored: the client sent nothing wrong
        return _error(500, "UNKNOWN", f"stored bytes are damaged: {error.message}")
    code = (
        oci_errors.UNSUPPORTED
        if isinstance(error, MethodNotAllowed | UnknownEncoding)
        else _CODES.get(error.code, "UNKNOWN")
    )
    return _error(reply.status, code, error.message, headers=reply.headers)


def _error(
    status: int, code: str, message: str, *, detail: str = "", headers: Mapping[str, str] | None = None
) -> Reply:
    entry = {"code": code, "message": message, "detail": detail}
    return _json({"errors": [entry]}, status=status, headers=headers)


def _json(value: object, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Reply:
    body = msgspec.json.encode(value)
    return Reply(status=status, body=body, headers={**(headers or {}), "Content-Type": "application/json"})
