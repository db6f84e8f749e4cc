"""The OCI distribution protocol (specification 1.1) under ``/v2/``: decode, call the registry, encode.

Push, pull, resume, ranges, referrers and listings, as skopeo, oras and our own client speak them. The Open Inference
Protocol shares ``/v2`` and goes first; :meth:`OciApi.handle` answers None for a path that is not of this protocol.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

import msgspec
from aiohttp import web

from cloud_core.registry import oci_errors
from cloud_core.registry.manifest_rules import check_reference_digest, check_repository
from cloud_core.registry.oci_errors import Refused
from cloud_core.registry.registry import Registry
from cloud_core.registry.uploads import Upload
from cloud_core.state import to_its_end
from penstock.artifact import manifests
from penstock.errors import DigestMismatch, NotFound, StorageError

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
_CONTENT_RANGE = re.compile(r"(?:bytes )?(\d{1,18})-(\d{1,18})(?:/\S+)?")
_FORMS = [
    (re.compile(r"/v2/_catalog"), "catalog"),
    (re.compile(r"/v2/(?P<name>.+)/tags/list"), "tags"),
    (re.compile(r"/v2/(?P<name>.+)/manifests/(?P<reference>[^/]+)"), "manifest"),
    (re.compile(r"/v2/(?P<name>.+)/blobs/uploads/?"), "uploads"),
    (re.compile(r"/v2/(?P<name>.+)/blobs/uploads/(?P<upload>[^/]+)"), "upload"),
    (re.compile(r"/v2/(?P<name>.+)/blobs/(?P<digest>[^/]+)"), "blob"),
    (re.compile(r"/v2/(?P<name>.+)/referrers/(?P<digest>[^/]+)"), "referrers"),
]
_Handler = Callable[..., Awaitable[web.StreamResponse]]


class OciApi:
    """Answers requests of the distribution protocol from one registry."""

    def __init__(self, registry: Registry, *, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._registry, self._now = registry, now
        self._handlers: Mapping[tuple[str, str], _Handler] = {
            ("catalog", "GET"): self._catalog,
            ("tags", "GET"): self._tags,
            ("manifest", "GET"): self._get_manifest,
            ("manifest", "HEAD"): self._get_manifest,
            ("manifest", "PUT"): self._put_manifest,
            ("manifest", "DELETE"): self._delete_manifest,
            ("blob", "GET"): self._get_blob,
            ("blob", "HEAD"): self._get_blob,
            ("uploads", "POST"): self._begin_upload,
            ("upload", "GET"): self._upload_status,
            ("upload", "PATCH"): self._append_upload,
            ("upload", "PUT"): self._finish_upload,
            ("upload", "DELETE"): self._cancel_upload,
            ("referrers", "GET"): self._referrers,
        }

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse | None:
        """The response to a request, errors included; None when its path is not of this protocol.

        ``GET /v2/`` itself is not handled: both protocols answer 200 there.
        """
        form, parts = _parse_path(request.path)
        if not form:
            return None
        try:
            if "name" in parts:
                check_repository(parts["name"])
            handler = self._handlers.get((form, request.method))
            if handler is None:
                raise Refused(oci_errors.UNSUPPORTED, f"{request.method} is not supported on this path")
            return await handler(request, **parts)
        except Refused as error:
            return _refused(error)
        except StorageError as error:
            # 507: the push can be resumed once the operator has made room
            return _error(507, "UNKNOWN", error.message)
        except DigestMismatch as error:
            return _error(500, "UNKNOWN", f"stored bytes are damaged: {error.message}")

    # -- reading -----------------------------------------------------------------------------------------------------

    async def _catalog(self, request: web.BaseRequest) -> web.Response:
        names, headers = _page(request, self._registry.repositories())
        return web.json_response({"repositories": names}, headers=headers)

    async def _tags(self, request: web.BaseRequest, name: str) -> web.Response:
        tags, headers = _page(request, self._registry.tags(name))
        return web.json_response({"name": name, "tags": tags}, headers=headers)

    async def _get_manifest(self, request: web.BaseRequest, name: str, reference: str) -> web.Response:
        row = self._registry.manifest(name, reference)
        data = await asyncio.to_thread(self._registry.store.read, row.digest)
        headers = {"Docker-Content-Digest": row.digest, "ETag": f'"{row.digest}"'}
        return web.Response(body=data, content_type=row.media_type, headers=headers)

    async def _referrers(self, request: web.BaseRequest, name: str, digest: str) -> web.Response:
        kind = request.query.get("artifactType", "")
        found = self._registry.referrers(name, digest, kind)
        index = manifests.Index(schema_version=2, media_type=manifests.INDEX, manifests=found)
        headers = {"OCI-Filters-Applied": "artifactType"} if kind else {}
        return web.Response(body=msgspec.json.encode(index), content_type=manifests.INDEX, headers=headers)

    async def _get_blob(self, request: web.BaseRequest, name: str, digest: str) -> web.StreamResponse:
        check_reference_digest(digest)
        try:
            path = self._registry.blob_path(digest)
        except NotFound:
            raise Refused(oci_errors.BLOB_UNKNOWN, f"no blob {digest} in {name}", detail=digest) from None
        headers = {"Docker-Content-Digest": digest, "Content-Type": "application/octet-stream"}
        # answers Range with 206 or 416 and sends the file without copying it through Python
        return web.FileResponse(path, chunk_size=_CHUNK_BYTES, headers=headers)

    # -- pushing -----------------------------------------------------------------------------------------------------

    async def _put_manifest(self, request: web.BaseRequest, name: str, reference: str) -> web.Response:
        data = await self._small_body(request)
        row = await self._registry.put_manifest(name, reference, request.content_type, data)
        headers = {"Location": f"/v2/{name}/manifests/{row.digest}", "Docker-Content-Digest": row.digest}
        if row.subject:
            headers["OCI-Subject"] = row.subject
        return web.Response(status=201, headers=headers)

    async def _delete_manifest(self, request: web.BaseRequest, name: str, reference: str) -> web.Response:
        await self._registry.delete_manifest(name, reference)
        return web.Response(status=202)

    async def _begin_upload(self, request: web.BaseRequest, name: str) -> web.Response:
        mount = request.query.get("mount", "")
        if mount and self._registry.store.has(check_reference_digest(mount)):
            return _created(name, mount)  # blobs are shared by all repositories, so "from" does not matter
        upload = self._registry.uploads.begin(self._now())
        if "digest" not in request.query:
            return _accepted(name, upload)
        return await self._finish_upload(request, name, upload.id)

    async def _upload_status(self, request: web.BaseRequest, name: str, upload: str) -> web.Response:
        return _accepted(name, self._registry.uploads.get(upload), status=204)

    async def _append_upload(self, request: web.BaseRequest, name: str, upload: str) -> web.Response:
        with self._writing(upload) as session:
            _check_continues(request, session)
            await self._receive(request, session)
        return _accepted(name, session)

    async def _finish_upload(self, request: web.BaseRequest, name: str, upload: str) -> web.Response:
        with self._writing(upload) as session:
            digest = check_reference_digest(request.query.get("digest", ""))
            _check_continues(request, session)
            await self._receive(request, session)
            await to_its_end(asyncio.to_thread(self._registry.uploads.finish, session, digest))
        return _created(name, digest)

    async def _cancel_upload(self, request: web.BaseRequest, name: str, upload: str) -> web.Response:
        with self._writing(upload) as session:
            self._registry.uploads.cancel(session)
        return web.Response(status=204)

    async def _receive(self, request: web.BaseRequest, session: Upload) -> None:
        async for chunk in request.content.iter_chunked(_CHUNK_BYTES):
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

    async def _small_body(self, request: web.BaseRequest) -> bytes:
        limit = self._registry.settings.max_manifest_bytes
        data = bytearray()
        async for chunk in request.content.iter_chunked(_CHUNK_BYTES):
            data += chunk
            if len(data) > limit:
                raise Refused(oci_errors.SIZE_INVALID, f"the manifest has more than the {limit} bytes allowed")
        return bytes(data)


def _parse_path(path: str) -> tuple[str, dict[str, str]]:
    for pattern, form in _FORMS:
        match = pattern.fullmatch(path)
        if match:
            return form, match.groupdict()
    return "", {}


def _check_continues(request: web.BaseRequest, session: Upload) -> None:
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


def _accepted(name: str, session: Upload, status: int = 202) -> web.Response:
    headers = {
        "Location": f"/v2/{name}/blobs/uploads/{session.id}",
        "Range": _range(session),
        "Docker-Upload-UUID": session.id,
        "OCI-Chunk-Min-Length": "1",
    }
    return web.Response(status=status, headers=headers)


def _created(name: str, digest: str) -> web.Response:
    headers = {"Location": f"/v2/{name}/blobs/{digest}", "Docker-Content-Digest": digest}
    return web.Response(status=201, headers=headers)


def _page(request: web.BaseRequest, names: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """One page of a sorted listing by the ``n`` and ``last`` parameters, and the Link to the next."""
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


def _refused(error: Refused) -> web.Response:
    headers = {"Range": error.detail} if error.oci_code == oci_errors.RANGE_INVALID else {}
    if error.oci_code == oci_errors.TOOMANYREQUESTS:
        headers["Retry-After"] = "5"
    return _error(_STATUS[error.oci_code], error.oci_code, error.message, detail=error.detail, headers=headers)


def _error(
    status: int, code: str, message: str, *, detail: str = "", headers: Mapping[str, str] | None = None
) -> web.Response:
    entry: dict[str, Any] = {"code": code, "message": message, "detail": detail}
    body = json.dumps({"errors": [entry]})
    return web.Response(status=status, text=body, content_type="application/json", headers=headers)
